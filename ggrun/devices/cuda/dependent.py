"""Programmatic dependent launch: kernels that begin while the one before them still runs, from Hopper on.

What a kernel does at its beginning, and how long it takes to be launched, is hidden behind the one before.
All of kernels/cuda waits for that one by itself (ptx.cuh). CuPy has no way to ask for it, so this calls the
driver's library: cuLaunchKernelEx, see "Execution Control" in the CUDA Driver API.
"""

import ctypes as c
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np

_HOPPER = 90
_IN_GRAPHS = 12030
"""The first driver that captures such launches."""
_STREAM_SERIALIZATION = 6  # CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION


class LaunchAttribute(c.Structure):
    """CUlaunchAttribute; of the union of its values, what is read here."""

    _fields_ = (("id", c.c_int), ("_pad", c.c_char * 4), ("allowed", c.c_int), ("_union", c.c_char * 60))


class LaunchConfig(c.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        ("grid", c.c_uint * 3),
        ("block", c.c_uint * 3),
        ("shared", c.c_uint),
        ("stream", c.c_void_p),
        ("attributes", c.POINTER(LaunchAttribute)),
        ("count", c.c_uint),
    )


class DependentLaunch:
    """Launches kernels that wait for what is before them on their own. library: the driver's."""

    def __init__(self, cupy: Any, library: Any) -> None:
        self._error: type[Exception] = cupy.cuda.driver.CUDADriverError
        self._launch = library.cuLaunchKernelEx

    @staticmethod
    def of(cupy: Any, arch: int) -> "DependentLaunch | None":
        """None where the card or the driver knows nothing of it. arch: the compute capability, times ten."""
        if arch < _HOPPER or cupy.cuda.runtime.driverGetVersion() < _IN_GRAPHS:
            return None
        with suppress(OSError, AttributeError):
            return DependentLaunch(cupy, driver_library())
        return None

    def __call__(
        self,
        function: int,
        grid: Sequence[int],
        block: Sequence[int],
        args: Sequence[Any],
        shared: int,
        stream: int,
    ) -> None:
        """Enqueue a kernel, a CUfunction. args: addresses as ints, all else as numpy scalars."""
        values = [np.asarray(np.uint64(arg) if isinstance(arg, int) else arg) for arg in args]
        pointers = (c.c_void_p * len(values))(*(value.ctypes.data for value in values))
        allowed = LaunchAttribute(id=_STREAM_SERIALIZATION, allowed=1)
        config = LaunchConfig(_three(grid), _three(block), shared, stream, c.pointer(allowed), 1)
        if status := self._launch(c.byref(config), c.c_void_p(function), pointers, None):
            raise self._error(status)


def driver_library() -> Any:
    """libcuda; OSError where there is none."""
    return c.CDLL("libcuda.so.1")


def _three(sizes: Sequence[int]) -> Any:
    return (c.c_uint * 3)(*sizes, *[1] * (3 - len(sizes)))
