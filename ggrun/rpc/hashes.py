"""The SHA-256 of a model file's tensors, computed once and kept for as long as the file stays the same."""

import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path

from ggrun.devices.kept import NONSENSE
from ggrun.devices.progress import Progress, silent
from ggrun.devices.threads import physical_cores
from ggrun.errors import Interrupted
from ggrun.gguf import GGUF, Tensor
from ggrun.kernels import cache_home

Stop = Callable[[], bool]
"""Whether to go on no more: asked every now and then."""
_BLOCK = 16 << 20  # bytes that are hashed between two looks
_LOOK = 0.1  # seconds between two looks of who waits
_KEEP = 1.0  # seconds of work that may be lost with the process
_busy: dict[tuple[str, ...], threading.Lock] = {}


def never() -> bool:
    """Nobody stops it."""
    return False


def check(stop: Stop) -> None:
    """Interrupted, if it is to stop."""
    if stop():
        raise Interrupted("stopped while model files were hashed")


def hashes(
    model: GGUF, names: Iterable[str], progress: Progress = silent, stop: Stop = never
) -> dict[str, bytes]:
    """The hashes of a model's tensors of these names. Interrupted when stopped; what is known then is kept.

    Of threads that want some of one file, one computes and the others wait: many are the same.
    """
    file, state = _file(model), _state(model)
    tensors = [model.tensors[name] for name in names]
    with _alone(model, stop):
        known = _kept(file, state)
        todo = [tensor for tensor in tensors if tensor.name not in known]
        done, total = 0, sum(tensor.nbytes for tensor in todo)
        kept = time.monotonic()
        try:
            with ThreadPoolExecutor(physical_cores()) as pool:  # hashing lets other threads run
                digests = pool.map(lambda tensor: _digest(tensor, stop), todo)
                for tensor, digest in zip(todo, digests, strict=True):
                    known[tensor.name] = digest
                    done += tensor.nbytes
                    progress("hashing", done, total)
                    if time.monotonic() - kept > _KEEP:
                        _keep(file, state, known)
                        kept = time.monotonic()
        finally:
            if done:
                _keep(file, state, known)
    return {tensor.name: known[tensor.name] for tensor in tensors}


def _digest(tensor: Tensor, stop: Stop) -> bytes:
    found, data = sha256(), tensor.data.data
    for begin in range(0, tensor.nbytes, _BLOCK):
        check(stop)
        found.update(data[begin : begin + _BLOCK])
    return found.digest()


@contextmanager
def _alone(model: GGUF, stop: Stop) -> Iterator[None]:
    lock = _busy.setdefault(_names(model), threading.Lock())
    while not lock.acquire(timeout=_LOOK):
        check(stop)
    try:
        yield
    finally:
        lock.release()


def _names(model: GGUF) -> tuple[str, ...]:
    return tuple(os.path.abspath(path) for path in model.paths)


def _file(model: GGUF) -> Path | None:
    name = sha256("\0".join(_names(model)).encode(errors="replace"))
    with suppress(OSError):
        return cache_home() / "hashes" / f"{name.hexdigest()}.json"
    return None


def _state(model: GGUF) -> list[list[int]]:
    """What changes with the files: their sizes and times."""
    found = [os.stat(path) for path in model.paths]
    return [[status.st_size, status.st_mtime_ns, status.st_ino] for status in found]


def _kept(file: Path | None, state: list[list[int]]) -> dict[str, bytes]:
    if file is not None:
        with suppress(OSError, AttributeError, *NONSENSE):
            known = json.loads(file.read_text(encoding="utf-8"))
            if known["state"] == state:
                return {name: bytes.fromhex(digest) for name, digest in known["tensors"].items()}
    return {}


def _keep(file: Path | None, state: list[list[int]], known: dict[str, bytes]) -> None:
    """Keep them, or compute them again the next time."""
    if file is None:
        return
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}")
        text = {"state": state, "tensors": {name: digest.hex() for name, digest in known.items()}}
        part.write_text(json.dumps(text), encoding="utf-8")
        part.replace(file)
