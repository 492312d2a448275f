"""Every family of kernels, launched as the product does it: the share of memory's or the tensor cores' rate.

What is counted is what must be moved: each input read once, each output written once. Weights and caches are
larger than the card's second-level cache, or several of them take turns; small rows lie in it, as they do
behind the product that wrote them.
"""

import gc
from dataclasses import asdict
from functools import partial
from statistics import median

import numpy as np

from ggrun.devices.cuda.switch_over import measured_gemm
from tools.gpu_cases import Case, cases
from tools.gpu_rig import Rig, Timed
from tools.gpu_step import COPY, MATRIX, Figure, Step
from tools.gpu_time import Sample, Timer, how_timed

_SWITCH_OVER = "switch-over to cuBLAS"
_CLOSE = 0.05
"""Relative error: int8 columns are half a hundredth off."""


def run(step: Step) -> None:
    """Each case by itself, the most important first."""
    rig, how = Rig(step.emulated), how_timed(step.emulated)
    timer = Timer(rig.driver)
    for what, case in cases(rig.tiny):
        step.attempt(what, partial(_case, step, rig, timer, case), how)
        gc.collect()  # gives back the card's memory
    if not step.emulated:
        step.attempt(_SWITCH_OVER, partial(_switch_over, step, rig))


def _switch_over(step: Step, rig: Rig) -> None:
    if not rig.driver.has_gemm:
        raise RuntimeError("there is no cuBLAS")
    how = "the fewest columns from which on it is faster than tiles, by the kind of format; 0: never"
    step.tell(Figure(_SWITCH_OVER, how=how, more=asdict(measured_gemm(rig.card))))


def _case(step: Step, rig: Rig, timer: Timer, case: Case) -> None:
    for timed in case(rig):
        how = how_timed(step.emulated, timed.graph)
        step.attempt(timed.what, partial(_timed, step, rig, timer, timed), how)


def _timed(step: Step, rig: Rig, timer: Timer, timed: Timed) -> None:
    error = _checked(rig, timer, timed)
    _tell(step, timed, timer.sample(timed.sets, timed.graph), error)


def _checked(rig: Rig, timer: Timer, timed: Timed) -> float | None:
    """The relative error, if there is a way to know; RuntimeError when the result makes no sense."""
    if timed.out is None:
        return None
    address, shape = timed.out
    rig.spoil(address, shape)
    timer.once(timed.sets[-1:])
    found = rig.read(address, *shape)
    if not np.isfinite(found).all():
        raise RuntimeError("the result is wrong: there are outputs that are no numbers")
    if timed.error is None:
        return None
    if not (error := timed.error(found)) <= _CLOSE:
        raise RuntimeError(f"the result is wrong: relative error {error:.2g}")
    return error


def _tell(step: Step, timed: Timed, sample: Sample, error: float | None) -> None:
    seconds, how, more = median(sample.seconds), how_timed(step.emulated, timed.graph), sample.more()
    if error is not None:
        more["relative error"] = error
    if timed.operations:
        rate, more["operations"] = timed.operations / seconds / 1e12, timed.operations
        step.tell(Figure(timed.what, rate, "TFLOP/s", step.share(rate, MATRIX), MATRIX, how, more=more))
    elif timed.nbytes:
        rate, more["bytes"] = timed.nbytes / seconds / 1e9, timed.nbytes
        step.tell(Figure(timed.what, rate, "GB/s", step.share(rate, COPY), COPY, how, more=more))
    else:
        step.tell(Figure(timed.what, 1e6 * seconds, "us", how=how, more=more))
