"""ggrun bench on whole models, and the same tests on one and on two logical devices of one card."""

import json
import sys
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from tools.gpu_bars import DECODE, LOSS, PREFILL
from tools.gpu_models import EIGHT_BITS, LARGE, SMALL, Model, is_made, ready, shape_of
from tools.gpu_pace import paced
from tools.gpu_step import COPY, MATRIX, Figure, Step, spread
from tools.gpu_work import prefill_operations

_PROMPT, _GENERATED, _REPETITIONS = 2048, 128, 3
_LOGICAL = "two logical devices of 24 GB"
_AT_MOST = 40.0  # seconds
_BATCHES = {SMALL.title: "512,2048"}
"""Tokens of a prompt that are computed together; 512 for other models."""


def run(step: Step) -> None:
    """The smaller models first."""
    _wait_for_models(step)
    for model in (SMALL, EIGHT_BITS):
        step.attempt(f"ggrun bench {model.title}", partial(_bench, step, model))
    step.attempt(f"{LOSS}, {SMALL.title}", partial(_logical, step, SMALL))
    step.attempt(f"ggrun bench {LARGE.title}", partial(_bench, step, LARGE))
    step.attempt(f"{LOSS}, {LARGE.title}", partial(_logical, step, LARGE))
    for mode in ("layer", "row"):
        what = f"{_LOGICAL}, -sm {mode}"
        step.attempt(f"{what}, {LARGE.title}", partial(_bench, step, LARGE, what, mode))


def _wait_for_models(step: Step) -> None:
    """Who writes them takes cores and memory of the host, which launches of small models would feel."""
    if (end := step.left - _AT_MOST) > _AT_MOST:
        step.wait_for(lambda: step.left < end or is_made(step, LARGE), "the last model")


def _sizes(step: Step) -> tuple[int, int, int]:
    """The prompt, what is generated, and how often."""
    return (16, 3, 2) if step.emulated else (_PROMPT, _GENERATED, _REPETITIONS)


def _bench(step: Step, model: Model, logical: str = "", mode: str = "layer") -> None:
    """On one device; logical: on two, and what they are called."""
    path = ready(step, model)
    prompt, generated, repetitions = _sizes(step)
    where = ["--devices", "emulated:0:2GB" if step.emulated else "cuda:0"]
    if logical:
        devices = "emulated:0:2GB,emulated:1:2GB" if step.emulated else "cuda:0:24GB,cuda:0:24GB"
        where = ["--devices", devices, "-sm", mode, "-ts", "1,1"]
    batches = "512" if logical else _BATCHES.get(model.title, "512")
    arguments = ["-p", str(prompt), "-n", str(generated), "-r", str(repetitions), "-ub", batches, *where]
    command = ["-m", "ggrun", "bench", "-m", str(path), *arguments, "-o", "jsonl"]
    how = f"ggrun bench -m {path.name} {' '.join(arguments)}"
    for line in step.lines([sys.executable, *command]):
        result = json.loads(line)
        tell = _tell_prompt if result["n_prompt"] else _tell_decode
        tell(step, model, result, how, f"{logical}, " if logical else "")


def _tell_decode(step: Step, model: Model, result: dict[str, Any], how: str, on: str) -> None:
    if result["n_ubatch"] != 512:
        return  # it is the same
    rates, nbytes = result["samples_ts"], result["token_bytes"]
    value = median(rates)
    read = nbytes * value / 1e9
    more = {**spread(rates), "GB/s": read, "bytes a token": nbytes}
    share = step.share(read, COPY)
    step.tell(Figure(f"{on}{DECODE}, {model.title}", value, "tokens/s", share, COPY, how, more=more))


def _tell_prompt(step: Step, model: Model, result: dict[str, Any], how: str, on: str) -> None:
    rates, prompt = result["samples_ts"], result["n_prompt"]
    operations = prefill_operations(shape_of(step, model), prompt)
    rate = operations / prompt * median(rates) / 1e12
    more = {**spread(rates), "TFLOP/s": rate, "operations": operations}
    name = f"{on}{PREFILL}, {model.title}, -ub {result['n_ubatch']}"
    step.tell(Figure(name, median(rates), "tokens/s", step.share(rate, MATRIX), MATRIX, how, more=more))


def _logical(step: Step, model: Model) -> None:
    """In processes of their own, one behind the other: the card has room for one of them."""
    path = ready(step, model)
    one, two = (_pace(step, path, devices) for devices in (1, 2))
    how = f"python -m tools.gpu_pace {path.name} 1, then 2"
    for test, name in (("prompt", PREFILL), ("decode", DECODE)):
        loss = 1 - median(one[test]) / median(two[test])
        more = {"one device, s": one[test], "two, s": two[test], "loading, s": [one["load"], two["load"]]}
        what = f"{LOSS}, {name}, {model.title}"
        step.tell(Figure(what, 100 * loss, "%", loss, "one device", how, more=more))


def _pace(step: Step, path: Path, devices: int) -> dict[str, Any]:
    return paced(step, path, devices, *_sizes(step))
