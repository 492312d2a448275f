"""The only door to the kernels: beside the package in a checkout, inside it in a wheel."""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parent
if not (ROOT / "cpu").is_dir():
    ROOT = ROOT.parents[1] / "kernels"
    __path__.append(str(ROOT))


@cache
def load_cpu(name: str) -> ModuleType:
    """A module of kernels/cpu by its name."""
    _use_own_numba_cache()
    return import_module(f"ggrun.kernels.cpu.{name}")


@cache
def _use_own_numba_cache() -> None:
    """Keep compiled kernels in one folder a state of the sources and of GGRUN_SIMD.

    Numba's cache sees neither an edit in a module that a kernel calls nor our choice of instructions.
    """
    import numba

    text = b"".join(p.read_bytes() for p in sorted((ROOT / "cpu").rglob("*.py")))
    state = f"{os.environ.get('GGRUN_SIMD', '')} {numba.__version__} {sys.version_info[:2]}".encode()
    folder = cache_home() / "kernels" / sha256(text + state).hexdigest()[:16]
    setattr(numba.config, "CACHE_DIR", str(_writable(folder)))  # noqa: B010 -- mypy does not see it


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
    """Where ggrun keeps what it can make again: GGRUN_CACHE, or ggrun in the user's cache folder."""
    if own := os.environ.get("GGRUN_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ggrun"


def _writable(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        print(
            f"ggrun: cannot write to the cache folder {folder} ({error.strerror}): kernels are compiled "
            "at every start; set GGRUN_CACHE to a folder that can be written",
            file=sys.stderr,
        )
        return Path(tempfile.mkdtemp(prefix="ggrun-kernels-"))
