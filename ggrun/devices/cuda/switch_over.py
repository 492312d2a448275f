"""From how many rows on cuBLAS is faster on a card: measured once, kept by the card's name and our kernels.

Not by its number: all cards of a kind in a machine round alike, so that a text does not tell which of them
computed it. Another machine may find other numbers.
"""

import json
from dataclasses import asdict, fields
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from ggrun.devices.base import Inputs, Limits, Rows
from ggrun.devices.cuda.device import Cuda
from ggrun.devices.cuda.driver import Driver
from ggrun.devices.cuda.gemm import GemmFrom
from ggrun.devices.cuda.memory import CudaWeight
from ggrun.devices.cuda.program import FEW
from ggrun.devices.cuda.recorder import CudaRecorder
from ggrun.devices.kept import Kept
from ggrun.devices.speeds import least_seconds
from ggrun.gguf import FORMATS, Tensor
from ggrun.kernels import cuda_state

_ROWS = (64, 128, 256, 512, 1024, 2048)
_MATRIX = 8192
_KINDS = {"quantized": "Q4_K", "two_scales": "Q6_K", "floats": "F16"}
"""A format for each field of GemmFrom: the one that most models have."""
_TILES, _GEMM = GemmFrom(), GemmFrom(FEW + 1, FEW + 1, FEW + 1)
_PRODUCTS, _TIMES = 4, 5  # one after the other, and how often that is timed
_BYTES = 64
"""Random bytes below this: a card is faster with zeros, but scales must be numbers."""


def measured_gemm(device: Cuda) -> GemmFrom:
    """Of a card that has cuBLAS. A few seconds, as kernels have to be compiled."""
    return GemmFrom(**{field: _switch_over(device, kind) for field, kind in _KINDS.items()})


def kept_gemm(driver: Driver) -> GemmFrom | None:
    """What was measured of such a card, now or before."""
    return _KEPT.get(_key(driver))


def keep_gemm(driver: Driver, found: GemmFrom) -> None:
    """Keep it."""
    _KEPT.put(_key(driver), found, json.dumps(asdict(found)))


def _key(driver: Driver) -> str:
    return sha256(driver.name.encode() + cuda_state()).hexdigest()[:24]


def _read(text: str) -> GemmFrom:
    """One of kept.NONSENSE for what was not kept here."""
    known = json.loads(text)
    found = [known[field.name] for field in fields(GemmFrom)]
    if not all(type(n) is int and (n == 0 or n > FEW) for n in found):
        raise ValueError("these are no numbers of rows")
    return GemmFrom(*found)


_KEPT = Kept("gemm", _read)


def _switch_over(device: Cuda, kind: str) -> int:
    """The fewest rows from which on cuBLAS is always the faster one; 0: it is not for the most of them."""
    rng, weights = np.random.default_rng(1), FORMATS[kind]
    data = rng.integers(0, _BYTES, weights.nbytes(_MATRIX) * _MATRIX, np.uint8)
    w = device.weight(Tensor("", (_MATRIX, _MATRIX), weights, data), (0, _MATRIX), (0, _MATRIX))
    rows, found = rng.standard_normal((max(_ROWS), _MATRIX), np.float32), 0
    for n in reversed(_ROWS):
        if _seconds(device, w, rows[:n], _GEMM) >= _seconds(device, w, rows[:n], _TILES):
            break
        found = n
    return found


def _seconds(device: Cuda, w: CudaWeight, rows: NDArray[np.float32], by: GemmFrom) -> float:
    """What products take, as they stand in a pass."""
    n = len(rows)
    ops = CudaRecorder(device.driver, Limits(n, 1, 1, 1), device.working_memory, device.check_interrupt, by)
    x = ops.input(w.columns)
    device.write(ops.place(x), rows)
    for _ in range(_PRODUCTS):
        ops.linear(x, w)
    program = ops.finish()

    def count(inputs: Inputs) -> None:
        inputs.counts[Rows.TOKENS] = n

    ops.feed(count)
    return least_seconds(device, program.run, _TIMES)
