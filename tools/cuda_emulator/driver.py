"""An emulated card: the Driver of ggrun/devices/cuda/driver.py on the CPU.

Work is done late, in an order that the schedule draws among the streams that share it, so that an event that
is missing shows. Memory is counted, and has an end. What lies on one card is out of reach for another, and
what was freed for all.
"""

import ctypes
from bisect import bisect_right, insort
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from weakref import finalize

import numpy as np
from numpy.typing import NDArray

from ggrun.devices.cuda.driver import Driver, Gemm
from ggrun.devices.late import Late, Schedule
from ggrun.errors import GgrunError
from tools.cuda_emulator.kernels import FORWARD, Kernel, KernelError, load_kernel
from tools.cuda_emulator.memory import Memory

LAUNCH, COPY = 1.0, 0.01
"""What a kernel and a copy take of the stream's virtual time."""


class EmulatedDriver:
    """One emulated card. order: of the threads, see kernels.py; limit: bytes of memory."""

    multiprocessors = 4
    """Few, so that small grids are seen from both sides: more blocks than fit at once, and fewer."""

    def __init__(
        self,
        arch: int = 80,
        limit: int = 1 << 30,
        schedule: Schedule | None = None,
        order: int = FORWARD,
        name: str = "emulated CUDA",
    ) -> None:
        self.name, self.arch, self.order = name, arch, order
        self.stream = Late(schedule or Schedule())
        self._limit, self._used = limit, 0
        self._arrays: list[tuple[int, int]] = []  # addresses and bytes, in order
        self._recorded: list[tuple[Callable[[], None], float]] | None = None  # for a graph

    def free_memory(self) -> tuple[int, int]:
        """Free and all bytes."""
        return self._limit - self._used, self._limit

    def allocate(self, nbytes: int) -> Memory:
        """Memory that is full of NaNs; GgrunError when there is not so much."""
        if nbytes > self._limit - self._used:
            raise GgrunError(f"{self.name}: {nbytes} bytes are wanted, {self._limit - self._used} are free")
        self._used += nbytes
        return self._array(nbytes, nbytes)

    def allocate_on_host(self, nbytes: int) -> Memory:
        """Memory that takes nothing of the card's."""
        return self._array(nbytes, 0)

    def _array(self, nbytes: int, counted: int) -> Memory:
        memory = Memory(nbytes)
        insort(self._arrays, (memory.address, nbytes))
        finalize(memory, self._give_back, memory.address, nbytes, counted).atexit = False
        return memory

    def kernel(self, file: str, name: str, **defines: str | int) -> Kernel:
        """A kernel, compiled for this card."""
        return load_kernel(file, name, self.arch, defines)

    def launch(
        self,
        kernel: Kernel,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        args: Sequence[Any],
        shared: int = 0,
    ) -> None:
        """Enqueue a kernel; what is wrong with the arguments is told at once."""
        kernel.max_dynamic_shared = max(kernel.max_dynamic_shared, shared)
        kernel.check(grid, block, args, shared)
        self.enqueue(partial(self._run, kernel, grid, block, tuple(args), shared), LAUNCH)

    has_gemm = True

    def gemm(self, product: Gemm) -> None:
        """Enqueue a product, which numpy makes; as with CuPy, cuBLAS is in no graph."""
        if self._recorded is not None:
            raise KernelError("a matrix product cannot be in a graph")
        self.enqueue(partial(self._multiply, product), LAUNCH)

    def _multiply(self, p: Gemm) -> None:
        x = self._matrix(p.x, np.float16, p.n, p.k, p.x_stride, "x of a matrix product")
        w = self._matrix(p.w, np.float16, p.rows, p.k, p.k, "w of a matrix product")
        y = self._matrix(p.y, np.float32, p.n, p.rows, p.y_stride, "y of a matrix product")
        y[:] = np.float32(p.scale) * (x.astype(np.float32) @ w.astype(np.float32).T)

    def _matrix(
        self, address: int, kind: type[np.generic], rows: int, width: int, stride: int, what: str
    ) -> NDArray[Any]:
        """Rows that lie `stride` values apart; the last one ends with its values."""
        count, size = (rows - 1) * stride + width, np.dtype(kind).itemsize
        self._check(address, count * size, what)
        flat = np.frombuffer((ctypes.c_uint8 * (count * size)).from_address(address), kind)
        return np.lib.stride_tricks.as_strided(flat, (rows, width), (stride * size, size))

    def graph(self, record: Callable[[], None]) -> "_Graph":
        """What `record` enqueues now, to be enqueued again."""
        steps: list[tuple[Callable[[], None], float]] = []
        self._recorded = steps
        try:
            record()
        finally:
            self._recorded = None
        return _Graph(self, steps)

    def fill(self, address: int, byte: int, nbytes: int) -> None:
        """Enqueue that memory is full of one byte."""

        def work() -> None:
            self._check(address, nbytes, "a fill")
            ctypes.memset(address, byte, nbytes)

        self.enqueue(work, COPY)

    def write(self, address: int, data: NDArray[Any]) -> None:
        """Copy from the host now."""
        self._check(address, data.nbytes, "a copy to the card")
        ctypes.memmove(address, data.ctypes.data, data.nbytes)

    def upload(self, address: int, data: NDArray[Any]) -> None:
        """Enqueue a copy from the host."""
        self.enqueue(lambda: self.write(address, np.ascontiguousarray(data)), COPY)

    def download(self, data: NDArray[Any], address: int) -> None:
        """Enqueue a copy to the host."""

        def work() -> None:
            self._check(address, data.nbytes, "a copy to the host")
            bytes_there = (ctypes.c_uint8 * data.nbytes).from_address(address)
            np.copyto(data, np.frombuffer(bytes_there, data.dtype).reshape(data.shape))

        self.enqueue(work, COPY)

    def copy(self, target: int, source: int, nbytes: int, card: Driver | None = None) -> None:
        """Enqueue a copy within the card, or to another emulated one."""
        to = card if isinstance(card, EmulatedDriver) else self

        def work() -> None:
            self._check(source, nbytes, "a copy")
            to._check(target, nbytes, "a copy")
            ctypes.memmove(target, source, nbytes)

        self.enqueue(work, COPY)

    def close(self) -> None:
        """There is nothing to give back."""

    def enqueue(self, work: Callable[[], None], cost: float) -> None:
        """Enqueue a piece of work, or note it for a graph."""
        if self._recorded is None:
            self.stream.enqueue(work, cost)
        else:
            self._recorded.append((work, cost))

    def _run(self, kernel: Kernel, *launch: Any) -> None:
        for i, value in enumerate(launch[2]):
            if isinstance(value, int) and value:
                self._check(value, 0, f"argument {i} of {kernel.name}")
        kernel(*launch, self.order)

    def _check(self, address: int, nbytes: int, what: str) -> None:
        """KernelError if these bytes are not all in one array of this card, or no longer."""
        index = bisect_right(self._arrays, (address, self._limit)) - 1
        begin, size = self._arrays[index] if index >= 0 else (0, 0)
        if address + nbytes > begin + size:
            raise KernelError(f"{what}: {nbytes} bytes at {address:#x} are in no array of {self.name}")

    def _give_back(self, address: int, nbytes: int, counted: int) -> None:
        self._used -= counted
        self._arrays.remove((address, nbytes))


class _Graph:
    """What was recorded: as one launch on the card's clock."""

    def __init__(self, driver: EmulatedDriver, steps: list[tuple[Callable[[], None], float]]) -> None:
        self._driver, self._steps = driver, steps

    def launch(self) -> None:
        for work, _ in self._steps:
            self._driver.enqueue(work, LAUNCH / len(self._steps))
