"""Models on CUDA devices, emulated ones or, with --device cuda, parts of a real card; for tests."""

from collections.abc import Sequence
from itertools import permutations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ggrun.arch.config import Config
from ggrun.devices.base import Device
from ggrun.devices.cuda.cupy_driver import CupyDriver
from ggrun.devices.cuda.device import Cuda
from ggrun.devices.cuda.gemm import GemmFrom
from ggrun.devices.late import Schedule
from ggrun.engine.engine import Engine
from ggrun.gguf import GGUF
from ggrun.plan import Plan, single
from ggrun.plan.usage import Sizes
from tools.cuda_emulator.driver import EmulatedDriver

REAL: list[bool] = []
"""Has something in it with --device cuda."""


def cards(
    n: int,
    arch: int = 80,
    seed: int = 0,
    limit: int = 1 << 30,
    direct: bool = True,
    gemm_from: GemmFrom | None = None,
) -> dict[str, Device]:
    """Cards by their names, cuda:0 and so on. Emulated: of an architecture, their streams interleaved.

    direct    how they copy to each other; see Cuda.connect
    """
    schedule = Schedule(seed)
    made = {}
    for name in (f"cuda:{i}" for i in range(n)):
        driver = CupyDriver(0, name) if REAL else EmulatedDriver(arch, limit, schedule, name=name)
        made[name] = Cuda(driver, name, limit, gemm_from)
    for one, other in permutations(made.values(), 2):
        one.connect(other, direct)
    return dict(made)


def engine(
    path: Path,
    devices: dict[str, Device],
    plan: Plan | None = None,
    all_reduce: str = "auto",
    wire: str = "f32",
    **options: int | str,
) -> Engine:
    """A model on devices: all of it on the first, without a plan."""
    model = GGUF(path)
    config = Config.from_gguf(model)
    plan, sizes = plan or single(config, next(iter(devices))), Sizes(256, **options)  # type: ignore[arg-type]
    return Engine(model, config, plan, devices, sizes, sums=(all_reduce, wire))


def logits(engine: Engine, tokens: Sequence[int], size: int = 1000) -> NDArray[np.float32]:
    """All logits of a text, with `size` tokens a batch."""
    engine.cache.truncate(0, 0)
    parts = [engine.decode(tokens[i : i + size], all_logits=True) for i in range(0, len(tokens), size)]
    return np.concatenate(parts)
