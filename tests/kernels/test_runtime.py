"""Kernels from the disk cache: each finds its own helpers, whichever process compiled them."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ggrun.kernels import load_cpu
from tests.waiting import PATIENCE

ROOT = Path(__file__).parents[2]
simd, runtime = load_cpu("simd"), load_cpu("runtime")
CHECK = """
import sys
import numpy as np
from tests.kernels.test_formats import exact, product, random_rows
for name in sys.argv[1].split():
    data = random_rows(name, 150, 512, np.random.default_rng(1))
    x = np.random.default_rng(2).standard_normal((5, 512)).astype(np.float32)
    want = x.astype(np.float64) @ exact(name, data).T
    assert np.linalg.norm(product(name, data, x) - want) < 2e-2 * np.linalg.norm(want), name
"""


def test_kernels_of_several_processes_in_one(tmp_path: Path) -> None:
    # Each process numbers its functions from one on: without names of their own, the helpers of F16 that one
    # process compiled and those of F32 that another did would be taken for the same.
    for names in ("F32", "F32 F16", "Q4_0", "Q4_0 F32 F16"):
        done = subprocess.run(
            [sys.executable, "-c", CHECK, names],
            env={**os.environ, "GGRUN_CACHE": str(tmp_path)},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr


KERNEL = """
import numpy as np
from ggrun.kernels import load_cpu
runtime, simd = load_cpu("runtime"), load_cpu("simd")
store, i64 = simd.store, simd.i64

@runtime.jit
def checked(n: int) -> int:
    if n == 9:
        raise ValueError("nine", n)  # with what is known at run time only: the code reads an environment
    return n

@runtime.kernel
def fill(n: int, out: int) -> None:
    memory = np.zeros(checked(n), np.int64)
    memory[0] = n
    store(i64, memory[0], out)
"""
FILL = """
import sys
import numpy as np
from filling import fill
out, told = np.zeros(1, np.int64), []
sys.unraisablehook = lambda error: told.append(error.exc_type.__name__)
kept = fill.is_kept
for n in (8, 9, 1 << 58, 7):
    fill(n, out.ctypes.data)
    told.append(int(out[0]))
print(kept, "numba.np.arrayobj" in sys.modules, *told)
"""


def test_a_kernel_from_the_cache_has_memory_and_errors_of_numba(tmp_path: Path) -> None:
    """Without the modules of Numba's that it was made of."""
    (tmp_path / "filling.py").write_text(KERNEL)
    env = {**os.environ, "GGRUN_CACHE": str(tmp_path / "cache"), "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    for kept in (False, True):
        command = [sys.executable, "-c", FILL]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=PATIENCE)
        assert (done.stderr, done.stdout) == ("", f"{kept} {not kept} 8 ValueError 8 MemoryError 8 7\n")


READ_ONLY = """
import tempfile
def refused(**_: object) -> None:
    raise OSError(30, "Read-only file system")
tempfile.TemporaryFile = refused
"""


def test_a_cache_that_is_read_only_is_read(tmp_path: Path) -> None:
    """As in a container that comes with it, or where another user has filled it."""
    (tmp_path / "filling.py").write_text(KERNEL)
    full, empty = tmp_path / "full", tmp_path / "empty"
    empty.mkdir()

    def run(cache: Path, before: str = "") -> tuple[str, str]:
        env = {**os.environ, "GGRUN_CACHE": str(cache), "PYTHONPATH": f"{tmp_path}:{ROOT}"}
        command = [sys.executable, "-c", before + FILL]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=60)
        return done.stdout.partition(" ")[0], done.stderr

    assert run(full) == ("False", "")
    assert run(full, READ_ONLY) == ("True", "")
    kept, note = run(empty, READ_ONLY)
    assert kept == "False"
    assert note.startswith(f"ggrun: cannot write to the cache folder {empty}")
    assert note.count("\n") == 1
    assert not [path for path in empty.rglob("*") if path.is_file()]


RIGHT = ("name", "object", (b"code", b"bitcode"))


@pytest.mark.parametrize(
    "whole",
    [
        ("a", "b"),
        (1, 2, 3, 4, 5, 6, 7, 8, 9),
        (RIGHT, 2, 3, 4, 5, 6, 7, 8, ()),  # its description has no names
        (RIGHT, 2, 3, 4, 5, 6, 7, 8, (), 10),
        (("name", "other", (b"code", b"bitcode")), 2, 3, 4, 5, 6, 7, 8, ()),
    ],
)
def test_what_another_numba_keeps_is_kept_whole(whole: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = load_cpu("disk")
    monkeypatch.setattr(disk.CompileResultCacheImpl, "reduce", lambda self, compiled: whole)
    assert disk._Entries.reduce(object.__new__(disk._Entries), None) == whole


def reads_of(kind: Any) -> Any:
    """A factory of intrinsics that gives them no name."""

    @simd.intrinsic
    def read(ctx: Any, address: Any) -> simd.Codegen:
        return simd.load._defn(ctx, kind, address)

    return read


def applied(function: Any) -> Any:
    """A factory of helpers: what it closes over is all that tells them apart."""

    @runtime.jit
    def helper(x: int) -> object:
        return function(x)

    return helper


def test_helpers_are_named_by_the_intrinsic_they_close_over() -> None:
    modules = [simd, load_cpu("tiles"), runtime, load_cpu("columns")]
    intrinsics = {id(v): v for m in modules for v in vars(m).values() if type(v).__name__ == "_Intrinsic"}
    assert simd.rounded in intrinsics.values()
    names = [applied(v).py_func.__qualname__ for v in intrinsics.values()]
    assert len(names) > 30
    assert len(set(names)) == len(names)


def test_an_intrinsic_without_a_name_of_its_own_is_refused() -> None:
    with pytest.raises(TypeError, match="must not close over <intrinsic read>"):
        applied(reads_of(simd.i64))
