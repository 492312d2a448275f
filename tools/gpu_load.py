"""How long a model takes to load, from the disk and from memory, beside what the disk and the bus can do."""

import os
import shutil
import time
from pathlib import Path

from tools.gpu_bars import LOADED
from tools.gpu_models import SMALL, ready
from tools.gpu_pace import paced
from tools.gpu_step import UPLOAD, Figure, Step

_PIECE = 32 << 20
_SPARE = 2 << 30


def run(step: Step) -> None:
    """The 8B model, from a copy in the folder of the results: models may be made where there is no disk."""
    step.attempt(LOADED, lambda: _run(step))


def _run(step: Step) -> None:
    path, copy = ready(step, SMALL), Path(step.settings["disk"]) / "load.gguf"
    free = shutil.disk_usage(copy.parent).free
    if free < path.stat().st_size + _SPARE:
        raise RuntimeError(
            f"no room for a copy of {path.name} in {copy.parent}: {free / 1e9:.1f} GB are free"
        )
    try:
        shutil.copyfile(path, copy)
        _measure(step, copy)
    finally:
        copy.unlink(missing_ok=True)


def _measure(step: Step, path: Path) -> None:
    size = path.stat().st_size
    disk = _read(path)
    how = f"{size / 1e9:.2f} GB read from {path.parent} in pieces of 32 MiB, after POSIX_FADV_DONTNEED"
    step.tell(Figure("disk rate", disk / 1e9, "GB/s", how=how))
    bus = step.known(UPLOAD)
    slower = min(disk, bus * 1e9) if bus else disk
    of = "disk rate" if slower == disk else UPLOAD
    _forget(path)
    _tell(step, LOADED, _loaded(step, path), size, slower, of)
    if bus:
        _tell(step, "load, file in memory", _loaded(step, path), size, bus * 1e9, UPLOAD)


def _tell(step: Step, what: str, seconds: float, size: int, rate: float, of: str) -> None:
    how = "from the open file to the engine on one device that has done all uploads, kernels compiled before"
    more = {"GB/s": size / seconds / 1e9}
    step.tell(Figure(what, seconds, "s", size / seconds / rate, of, how, more=more))


def _loaded(step: Step, path: Path) -> float:
    """Seconds."""
    return float(paced(step, path, 1, 1, 1, 0)["load"])


def _forget(path: Path) -> None:
    """Let the system drop what it holds of a file: what is not written yet cannot go."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _read(path: Path) -> float:
    """Bytes a second from the disk."""
    _forget(path)
    buffer, begin = bytearray(_PIECE), time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return path.stat().st_size / (time.perf_counter() - begin)
