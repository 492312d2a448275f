"""The only door to the kernels: beside the package in a checkout, inside it in a wheel."""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from errno import ENOENT
from functools import cache
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from types import ModuleType

from ggrun.errors import UsageError

CUDA_OPTIONS = ("-std=c++17",)
"""What kernels/cuda is compiled with, besides the card's architecture, macros and folders."""

ROOT = Path(__file__).parent
if not (ROOT / "cpu").is_dir():
    ROOT = ROOT.parents[1] / "kernels"
    __path__.append(str(ROOT))


@cache
def load_cpu(name: str) -> ModuleType:
    """A module of kernels/cpu by its name; UsageError when GGRUN_SIMD makes no sense."""
    _choose_cache_folder()
    try:
        import_module("ggrun.kernels.cpu.llvm_ir")
    except ValueError as error:
        raise UsageError(str(error)) from None
    return import_module(f"ggrun.kernels.cpu.{name}")


@cache
def _choose_cache_folder() -> None:
    """Keep compiled kernels in one folder a state of the sources and of GGRUN_SIMD.

    Numba's cache sees neither an edit in a module that a kernel calls nor our choice of instructions.
    """
    import numba

    text = b"".join(p.read_bytes() for p in sorted((ROOT / "cpu").rglob("*.py")))
    state = f"{os.environ.get('GGRUN_SIMD', '')} {numba.__version__} {sys.version_info[:2]}".encode()
    disk = import_module("ggrun.kernels.cpu.disk").DiskCache
    folder = Path("~/.cache/ggrun")
    disk.on_failure = lambda error: _not_kept(folder, error.strerror)
    try:
        folder = cache_home() / "kernels" / sha256(text + state).hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True)
        disk.folder = folder.resolve()
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        disk.refused = error
        if disk.folder is None:
            disk.on_failure(error)


@contextmanager
def watch(show: Callable[[str], None]) -> Iterator[None]:
    """Call `show` with the name of each CPU kernel that has to be compiled: that is not in the cache."""
    runtime = load_cpu("runtime")
    runtime.Kernel.on_compile, before = show, runtime.Kernel.on_compile
    try:
        yield
    finally:
        runtime.Kernel.on_compile = before


def cache_home() -> Path:
    """Where ggrun keeps what it can make again: GGRUN_CACHE, or in the user's folder; OSError if none."""
    if own := os.environ.get("GGRUN_CACHE"):
        return Path(own)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ggrun"
    except RuntimeError:
        raise OSError(ENOENT, "this user has no home folder") from None


@cache
def _not_kept(folder: Path, why: str) -> None:
    """Say, once, that kernels are not kept."""
    line = (
        f"ggrun: cannot write to the cache folder {folder} ({why}): kernels are compiled at every start; "
        "set GGRUN_CACHE to a folder that can be written"
    )
    # A full or closed stderr must not stop what works.
    if sys.stderr:
        with suppress(OSError):
            print(line, file=sys.stderr)


def cuda_source(file: str) -> Path:
    """Where a file of kernels/cuda is; an absolute path stays as it is."""
    return ROOT / "cuda" / file


@cache
def cuda_state() -> bytes:
    """What changes with any of the CUDA sources."""
    files = sorted(p for p in cuda_source("").rglob("*") if p.suffix in (".cu", ".cuh"))
    return sha256(b"".join(p.read_bytes() for p in files)).digest()
