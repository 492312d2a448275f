"""An emulated card: the Driver of ggrun/devices/cuda_driver.py on the CPU.

Work is done late, in an order that the schedule draws among the streams that share it, so that an event that
is missing shows. Memory is counted, and has an end.
"""

import ctypes
from collections.abc import Sequence
from typing import Any
from weakref import finalize

from numpy.typing import NDArray

from ggrun.devices.late import Late, Schedule
from ggrun.errors import GgrunError
from tools.cuda_emulator.kernels import FORWARD, Kernel, load_kernel
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

    def free_memory(self) -> tuple[int, int]:
        """Free and all bytes."""
        return self._limit - self._used, self._limit

    def allocate(self, nbytes: int) -> Memory:
        """Memory that is full of NaNs; GgrunError when there is not so much."""
        if nbytes > self._limit - self._used:
            raise GgrunError(f"{self.name}: {nbytes} bytes are wanted, {self._limit - self._used} are free")
        memory = Memory(nbytes)
        self._used += nbytes
        finalize(memory, self._give_back, nbytes)
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
        args = tuple(args)
        self.stream.enqueue(lambda: kernel(grid, block, args, shared, self.order), LAUNCH)

    def upload(self, address: int, data: NDArray[Any]) -> None:
        """Enqueue a copy from the host."""
        self._copy(address, data.ctypes.data, data.nbytes, data)

    def download(self, data: NDArray[Any], address: int) -> None:
        """Enqueue a copy to the host."""
        self._copy(data.ctypes.data, address, data.nbytes, data)

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """Enqueue a copy within the card."""
        self._copy(target, source, nbytes)

    def _copy(self, target: int, source: int, nbytes: int, keep: Any = None) -> None:
        def work() -> None:
            ctypes.memmove(target, source, nbytes)
            del held[:]

        held = [keep]  # the host's array must live until then
        self.stream.enqueue(work, COPY)

    def _give_back(self, nbytes: int) -> None:
        self._used -= nbytes
