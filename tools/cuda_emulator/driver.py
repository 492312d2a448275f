"""An emulated card: the Driver of ggrun/devices/cuda_driver.py on the CPU.

Work is done late, in an order that the schedule draws among the streams that share it, so that an event that
is missing shows. Memory is counted, and has an end. What lies on one card is out of reach for another, and
what was freed for all.
"""

import ctypes
from bisect import bisect_right, insort
from collections.abc import Sequence
from functools import partial
from typing import Any
from weakref import finalize

from numpy.typing import NDArray

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

    def free_memory(self) -> tuple[int, int]:
        """Free and all bytes."""
        return self._limit - self._used, self._limit

    def allocate(self, nbytes: int) -> Memory:
        """Memory that is full of NaNs; GgrunError when there is not so much."""
        if nbytes > self._limit - self._used:
            raise GgrunError(f"{self.name}: {nbytes} bytes are wanted, {self._limit - self._used} are free")
        memory = Memory(nbytes)
        self._used += nbytes
        insort(self._arrays, (memory.address, nbytes))
        finalize(memory, self._give_back, memory.address, nbytes).atexit = False
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
        self.stream.enqueue(partial(self._run, kernel, grid, block, tuple(args), shared), LAUNCH)

    def upload(self, address: int, data: NDArray[Any]) -> None:
        """Enqueue a copy from the host."""
        self._copy(address, data.ctypes.data, data.nbytes, data)

    def download(self, data: NDArray[Any], address: int) -> None:
        """Enqueue a copy to the host."""
        self._copy(data.ctypes.data, address, data.nbytes, data)

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """Enqueue a copy within the card."""
        self._copy(target, source, nbytes)

    def _copy(self, target: int, source: int, nbytes: int, host: Any = None) -> None:
        """`host` is what must live until then."""

        def work() -> None:
            for address in (target, source):
                if host is None or address != host.ctypes.data:
                    self._check(address, nbytes, "a copy")
            ctypes.memmove(target, source, nbytes)

        self.stream.enqueue(work, COPY)

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

    def _give_back(self, address: int, nbytes: int) -> None:
        self._used -= nbytes
        self._arrays.remove((address, nbytes))
