"""The logits of llama.cpp's reference models on the card, by the bars of tests/cuda/test_peer.py."""

import os
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ggrun.arch import names
from ggrun.arch.config import Config
from ggrun.devices.base import Device
from ggrun.engine.engine import Engine
from ggrun.gguf import GGUF, Outline
from ggrun.plan import Plan, Stage, single, whole
from ggrun.plan.usage import Sizes
from tools.gpu_step import ROOT, Figure, Step
from tools.gpu_time import open_cards

_EXACT, _AS_LLAMA_CPP = 1e-6, 1.1
_CONTEXT = 256
_BATCHES = (1000, 7, 1)
_METHOD = "sum((a - b)^2) / sum(b^2) of the logits of a text"


def peer() -> Path:
    """Where the reference is: GGRUN_PEER, or beside the checkout; RuntimeError when it is not there."""
    folder = Path(os.environ.get("GGRUN_PEER") or ROOT.parent / "shared" / "peer")
    if not folder.is_dir():
        raise RuntimeError(f"no reference material at {folder}: set GGRUN_PEER to its 'peer' folder")
    return folder


def run(step: Step) -> None:
    """Architectures by their distance from llama.cpp's logits, formats by that from the exact ones."""
    step.attempt("peer", lambda: _run(step, peer()))


def _run(step: Step, folder: Path) -> None:
    for path in _implemented(folder / "archs"):
        for size in _BATCHES:
            name = f"{path.stem}, {size} tokens at most a batch"
            step.attempt(name, partial(_architecture, step, path, size, name), _METHOD)
        name = f"{path.stem}, two logical devices, by layer"
        step.attempt(name, partial(_architecture, step, path, _CONTEXT, name, devices=2), _METHOD)
    for path in _implemented(folder / "quants"):
        name = f"{path.stem}, from exact"
        step.attempt(name, partial(_format, step, path, name), _METHOD)


def _implemented(folder: Path) -> Iterator[Path]:
    """Models with a reference, of architectures that ggrun has."""
    for path in sorted(folder.glob("*.gguf")):
        if path.with_suffix(".npz").exists() and Outline.read(path).architecture in names():
            yield path


def _logits(step: Step, path: Path, tokens: list[int], size: int, devices: int = 1) -> NDArray[np.float32]:
    model = GGUF(path)
    config = Config.from_gguf(model)
    cards: dict[str, Device] = {**open_cards(step.emulated, devices)}
    plan = single(config, "cuda:0") if devices == 1 else by_layer(config, 2)
    engine = Engine(model, config, plan, cards, Sizes(_CONTEXT))
    parts = [engine.decode(tokens[i : i + size], all_logits=True) for i in range(0, len(tokens), size)]
    for card in cards.values():
        card.close()
    return np.concatenate(parts)


def by_layer(config: Config, devices: int) -> Plan:
    """As many layers on each device."""
    cuts = [2 * (config.layers * i // devices) for i in range(devices + 1)]
    runs = pairwise(cuts)
    return Plan(tuple(Stage(halves, (whole(config, f"cuda:{i}"),)) for i, halves in enumerate(runs)))


def _reference(path: Path) -> dict[str, np.ndarray]:
    with np.load(path.with_suffix(".npz")) as arrays:
        return dict(arrays)


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(((a - b) ** 2).sum() / (b**2).sum())


def _architecture(step: Step, path: Path, size: int, name: str, devices: int = 1) -> None:
    want = _reference(path)
    got = _logits(step, path, want["tokens"].tolist(), size, devices)
    _tell(step, name, _distance(got, want["logits"]), _EXACT)


def _format(step: Step, path: Path, name: str) -> None:
    want = _reference(path)
    if "exact" not in want:
        return
    got = _logits(step, path, want["tokens"].tolist(), _CONTEXT)
    bar = _AS_LLAMA_CPP * _distance(want["logits"], want["exact"])
    _tell(step, name, _distance(got, want["exact"]), bar)


def _tell(step: Step, what: str, found: float, bar: float) -> None:
    wrong = "" if found <= bar else f"more than {bar:.2g}"  # NaN is wrong too
    step.tell(Figure(what, found, how=_METHOD, error=wrong, more={"bar": bar}))
