"""Compiled kernels, and their launches."""

import ctypes as c
import os
import subprocess
from collections.abc import Sequence
from functools import cache
from math import prod
from typing import Any

import numpy as np

from ggrun.errors import GgrunError
from ggrun.kernels import cuda_source
from tools.cuda_emulator.build import build_kernels, build_runtime
from tools.cuda_variants import allows

FORWARD, REVERSE = 0, 1
"""Orders of the threads and blocks; any greater number is the seed of a random one."""

_OPT_IN = 48 << 10
"""Bytes of dynamic shared memory that a launch may have without asking for more."""
_MOST_SHARED = {75: 64, 80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 120: 99}
"""KiB of shared memory that a block can have, by compute capability."""
_TYPES = {"i": np.int32, "q": np.int64, "f": np.float32}
_MOST_THREADS, _MOST_BLOCKS = (1024, 1024, 64), ((1 << 31) - 1, 65535, 65535)


class KernelError(GgrunError):
    """A kernel did, or was given, something that it must not."""


class _Parameters(c.Structure):
    _fields_ = (
        ("grid", c.c_uint * 3),
        ("block", c.c_uint * 3),
        ("dynamic_shared", c.c_uint),
        ("max_shared", c.c_uint),
        ("workers", c.c_int),
        ("order", c.c_int),
    )


class _Failure(c.Structure):
    _fields_ = (
        ("text", c.c_char * 512),
        ("file", c.c_char * 256),
        ("line", c.c_int),
        ("instruction", c.c_void_p),
        ("other", c.c_void_p),
        ("block", c.c_uint * 3),
        ("thread", c.c_uint * 3),
    )


class _Export(c.Structure):
    _fields_ = (("entry", c.c_void_p), ("signature", c.c_char_p), ("max_threads", c.c_uint))


@cache
def runtime() -> c.CDLL:
    """The runtime's library."""
    library = c.CDLL(str(build_runtime()), mode=c.RTLD_GLOBAL)
    library.emu_launch.argtypes = [c.c_void_p, c.c_void_p, c.POINTER(_Parameters), c.POINTER(_Failure)]
    library.emu_allocate.argtypes, library.emu_allocate.restype = [c.c_uint64], c.c_void_p
    library.emu_free.argtypes = [c.c_void_p]
    return library


class Kernel:
    """A kernel of a library; `max_dynamic_shared` as cudaFuncAttributeMaxDynamicSharedMemorySize."""

    def __init__(self, library: c.CDLL, name: str, arch: int) -> None:
        try:
            export = _Export.in_dll(library, f"emu_{name}")
        except ValueError:
            raise KernelError(f"{library._name} has no kernel {name}") from None
        self.name, self.signature = name, export.signature.decode()
        if "?" in self.signature:
            raise KernelError(
                f"{name}: parameter {self.signature.index('?')} is no pointer, int, long long or float"
            )
        self.max_dynamic_shared = _OPT_IN
        self._library, self._entry, self._max_threads = library, export.entry, export.max_threads or 1024
        self._most_shared = _MOST_SHARED[arch] << 10

    def __call__(
        self,
        grid: Sequence[int],
        block: Sequence[int],
        args: Sequence[Any],
        shared: int = 0,
        order: int = FORWARD,
        workers: int = 0,
    ) -> None:
        """Run to the end. args: ints for pointers, numpy scalars for the rest; shared in bytes."""
        self.check(grid, block, args, shared)
        values = b"".join(
            np.uint64(v).tobytes() if isinstance(v, int) else v.tobytes().ljust(8) for v in args
        )
        kept = c.create_string_buffer(values)
        addresses = (c.c_void_p * len(args))(*range(c.addressof(kept), c.addressof(kept) + 8 * len(args), 8))
        parameters = _Parameters(
            _three(grid), _three(block), shared, self._most_shared, workers or _processors(), order
        )
        failure = _Failure()
        if runtime().emu_launch(self._entry, addresses, c.byref(parameters), c.byref(failure)):
            raise KernelError(self._explain(failure))

    def check(self, grid: Sequence[int], block: Sequence[int], args: Sequence[Any], shared: int) -> None:
        """What a launch can be seen to be wrong by before it begins; KernelError."""
        self._check_sizes(grid, block)
        allowed = min(self.max_dynamic_shared, self._most_shared)
        if shared > allowed:
            raise self._error(f"{shared} bytes of dynamic shared memory; {allowed} are allowed")
        if len(args) != len(self.signature):
            raise self._error(f"there are {len(self.signature)} parameters, not {len(args)}")
        for i, (value, letter) in enumerate(zip(args, self.signature, strict=True)):
            wanted = int if letter == "P" else _TYPES[letter]
            if type(value) is not wanted:
                raise self._error(f"argument {i} must be {wanted.__name__}, not {value!r}")

    def _check_sizes(self, grid: Sequence[int], block: Sequence[int]) -> None:
        for what, sizes, most in (("grid", grid, _MOST_BLOCKS), ("block", block, _MOST_THREADS)):
            if not 1 <= len(sizes) <= 3 or any(not 1 <= n <= m for n, m in zip(sizes, most, strict=False)):
                raise self._error(f"a {what} of {tuple(sizes)} is not possible")
        if (threads := prod(block)) > self._max_threads:
            raise self._error(f"{threads} threads a block are more than {self._max_threads}")

    def _error(self, text: str) -> KernelError:
        return KernelError(f"{self.name}: {text}")

    def _explain(self, failure: _Failure) -> str:
        file, line = failure.file.decode(), failure.line
        if failure.instruction:
            file, line = _line_of(self._library._name, failure.instruction)
        text = failure.text.decode(errors="replace")
        if failure.other:
            text += " {}:{}".format(*_line_of(self._library._name, failure.other))
        place = f" at {os.path.basename(file)}:{line}" if file else ""
        block, thread = tuple(failure.block), tuple(failure.thread)
        return f"{self.name}{place}, block {block}, thread {thread}: {text}"


def load_kernel(file: str, name: str, arch: int, defines: dict[str, str | int]) -> Kernel:
    """A kernel of kernels/cuda/`file`, or of a path; arch is the compute capability times ten."""
    return Kernel(_load(file, arch, tuple(sorted(defines.items()))), name, arch)


@cache
def _load(file: str, arch: int, defines: tuple[tuple[str, str | int], ...]) -> c.CDLL:
    path, choice = cuda_source(file), {name: str(value) for name, value in defines}
    if path.parent == cuda_source("") and not allows(path, choice):
        raise KernelError(f"{file} has no line `// variants: ...` that allows {_short(choice)}")
    runtime()
    return c.CDLL(str(build_kernels(path, arch * 10, choice)))


def _short(defines: dict[str, str]) -> str:
    return " ".join(f"{name}={value if len(value) < 30 else '*'}" for name, value in defines.items())


@cache
def _processors() -> int:
    return len(os.sched_getaffinity(0))


def _three(sizes: Sequence[int]) -> c.Array[c.c_uint]:
    return (c.c_uint * 3)(*sizes, *(1,) * (3 - len(sizes)))


def _line_of(path: str, address: int) -> tuple[str, int]:
    """The innermost line of the kernel's source at an address of its code; nothing where addr2line is not."""
    with open("/proc/self/maps") as maps:
        bases = [int(line.split("-")[0], 16) for line in maps if line.rstrip().endswith(path)]
    if not bases:
        return "", 0
    try:
        done = subprocess.run(
            ["addr2line", "-i", "-e", path, hex(address - min(bases))],
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return "", 0
    for place in done.stdout.split():
        file, _, line = place.rpartition(":")
        if file.endswith((".cu", ".cuh")) and not file.endswith("ptx.cuh") and line.isdecimal():
            return os.path.basename(file), int(line)
    return "", 0
