"""The SHA-256 of a model file's tensors, computed once and kept for as long as the file stays the same."""

import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from ggrun.devices.kept import NONSENSE
from ggrun.devices.progress import Progress, silent
from ggrun.devices.threads import physical_cores
from ggrun.gguf import GGUF
from ggrun.kernels import cache_home


def hashes(model: GGUF, names: Iterable[str], progress: Progress = silent) -> dict[str, bytes]:
    """The hashes of a model's tensors of these names."""
    file, state = _file(model), _state(model)
    known = _kept(file, state)
    tensors = [model.tensors[name] for name in names]
    todo = [tensor for tensor in tensors if tensor.name not in known]
    done, total = 0, sum(tensor.nbytes for tensor in todo)
    with ThreadPoolExecutor(physical_cores()) as pool:  # hashing lets other threads run
        for tensor, digest in zip(todo, pool.map(lambda t: sha256(t.data).digest(), todo), strict=True):
            known[tensor.name] = digest
            done += tensor.nbytes
            progress("hashing", done, total)
    if todo:
        _keep(file, state, known)
    return {tensor.name: known[tensor.name] for tensor in tensors}


def _file(model: GGUF) -> Path | None:
    name = sha256("\0".join(os.path.abspath(path) for path in model.paths).encode(errors="replace"))
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
