"""An emulated card: the Driver of ggrun/devices/cuda/driver.py on the CPU.

Work is done late, in an order that the schedule draws among the streams that share it, so that an event that
is missing shows. Memory is counted, and has an end. What lies on one card is out of reach for another one
without peer access, and what was freed for all.
"""

import ctypes
from bisect import bisect_right, insort
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from enum import Enum
from functools import cached_property, partial
from itertools import count
from typing import Any
from weakref import finalize

import numpy as np
from numpy.typing import NDArray

from ggrun.devices.cuda.driver import Driver, Gemm, OutOfMemory
from ggrun.devices.late import LateEvent, Schedule
from ggrun.devices.streams import Stream
from ggrun.errors import GgrunError
from tools.cuda_emulator.capture import CardStream, StreamGraph
from tools.cuda_emulator.kernels import FORWARD, Kernel, KernelError, load_kernel
from tools.cuda_emulator.memory import Memory

LAUNCH, COPY = 1.0, 0.01
"""What a kernel and a copy take of the stream's virtual time."""


class Peers(Enum):
    """What becomes of copies that go directly from a card to another one."""

    WORK = "work"
    NONE = "none"  # there is no peer access
    CORRUPT = "corrupt"  # bytes get lost now and then, and nobody says so
    HANG = "hang"  # they never end


_CORRUPTED = 7
"""Of so many copies one comes out wrong."""
_numbers = count()


class _Arrays:
    """Where allocations lie."""

    def __init__(self) -> None:
        self._all: list[tuple[int, int]] = []  # addresses and bytes, in order

    def add(self, memory: Memory) -> None:
        insort(self._all, (memory.address, memory.nbytes))

    def remove(self, address: int, nbytes: int) -> None:
        self._all.remove((address, nbytes))

    def hold(self, address: int, nbytes: int) -> bool:
        """Whether these bytes are all in one of them."""
        index = bisect_right(self._all, (address, 1 << 62)) - 1
        begin, size = self._all[index] if index >= 0 else (0, 0)
        return address + nbytes <= begin + size


_PINNED = _Arrays()
"""What all cards reach."""


class EmulatedDriver:
    """One emulated card. order: of the threads, see kernels.py; limit: bytes of memory."""

    multiprocessors = 4
    """Few, so that small grids are seen from both sides: more blocks than fit at once, and fewer."""
    l2_bytes = 1 << 12

    def __init__(
        self,
        arch: int = 80,
        limit: int = 1 << 30,
        schedule: Schedule | None = None,
        order: int = FORWARD,
        name: str = "emulated CUDA",
        peers: Peers = Peers.WORK,
    ) -> None:
        self.name, self.arch, self.order = name, arch, order
        self.identity = f"{name} {next(_numbers)}"
        self.stream = CardStream(schedule or Schedule())
        self._limit, self._used, self._arrays = limit, 0, _Arrays()
        self._peers, self._reached, self._sent = peers, set[Driver](), 0

    @cached_property
    def transfers(self) -> CardStream:
        """A second stream, which is in the schedule once it is needed."""
        return self.stream.beside()

    def free_memory(self) -> tuple[int, int]:
        """Free and all bytes."""
        return self._limit - self._used, self._limit

    def allocate(self, nbytes: int) -> Memory:
        """Memory that is full of NaNs; OutOfMemory when there is not so much."""
        if nbytes > self._limit - self._used:
            raise OutOfMemory(f"{self.name}: {nbytes} bytes are wanted, {self._limit - self._used} are free")
        memory = Memory(nbytes)
        self._used += nbytes
        self._arrays.add(memory)
        finalize(memory, self._give_back, memory.address, nbytes).atexit = False
        return memory

    def allocate_on_host(self, nbytes: int) -> Memory:
        """Memory that takes nothing of the card's."""
        memory = Memory(nbytes)
        _PINNED.add(memory)
        finalize(memory, _PINNED.remove, memory.address, nbytes).atexit = False
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
        if self.capturing:
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

    @property
    def capturing(self) -> bool:
        """Whether what is enqueued now goes into a graph."""
        return self.stream.capture is not None

    def graph(self, record: Callable[[], None]) -> "_Graph":
        """What `record` enqueues now, to be enqueued again."""
        self.stream.begin_capture()
        try:
            record()
        except BaseException:
            with suppress(KernelError):
                self.stream.end_capture()
            raise
        return _Graph(self.stream.end_capture())

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

    def upload(self, address: int, data: NDArray[Any], beside: bool = False) -> None:
        """Enqueue a copy from the host."""
        enqueue = self.transfers.enqueue if beside else self.enqueue
        enqueue(lambda: self.write(address, np.ascontiguousarray(data)), COPY)

    def download(self, data: NDArray[Any], address: int) -> None:
        """Enqueue a copy to the host."""

        def work() -> None:
            self._check(address, data.nbytes, "a copy to the host")
            bytes_there = (ctypes.c_uint8 * data.nbytes).from_address(address)
            np.copyto(data, np.frombuffer(bytes_there, data.dtype).reshape(data.shape))

        self.enqueue(work, COPY)

    def can_reach(self, card: Driver) -> bool:
        """Whether there is peer access to another emulated card."""
        return card is self or self._peers is not Peers.NONE

    def reach(self, card: Driver) -> None:
        """Enable it."""
        if not self.can_reach(card):
            raise GgrunError(f"{self.name}: there is no peer access to {card.name}")
        self._reached.add(card)

    def copy(self, target: int, source: int, nbytes: int, card: Driver | None = None) -> None:
        """Enqueue a copy within the card, or to another emulated one that it has reached."""
        to = card if isinstance(card, EmulatedDriver) else self
        if to is not self and to not in self._reached:
            raise KernelError(f"a copy from {self.name} to {to.name}, without peer access")

        def work() -> None:
            self._check(source, nbytes, "a copy")
            to._check(target, nbytes, "a copy")
            ctypes.memmove(target, source, nbytes)
            if to is not self and self._peers is Peers.CORRUPT:
                self._corrupt(target, nbytes)

        if to is not self and self._peers is Peers.HANG:
            self.stream.wait(LateEvent(self.stream.schedule))
        self.enqueue(work, COPY)

    def _corrupt(self, target: int, nbytes: int) -> None:
        """Lose the last bytes of a copy now and then."""
        self._sent += 1
        if self._sent % _CORRUPTED == 0:
            lost = min(nbytes, 64)
            ctypes.memset(target + nbytes - lost, 0, lost)

    def receive(self, target: int, source: int, nbytes: int) -> None:
        """Enqueue a copy from the host in the second stream."""

        def work() -> None:
            self._check(target, nbytes, "a copy")
            if not _PINNED.hold(source, nbytes):
                raise KernelError(f"a copy: {nbytes} bytes at {source:#x} are in no pinned memory")
            ctypes.memmove(target, source, nbytes)

        self.transfers.enqueue(work, COPY)

    def watched(self, what: str, instead: str, behind: Sequence[Stream] = ()) -> AbstractContextManager[None]:
        """Nothing is: work is done when somebody waits for it, and that may be at any time."""
        return nullcontext()

    def close(self) -> None:
        """There is nothing to give back."""

    def enqueue(self, work: Callable[[], None], cost: float) -> None:
        """Enqueue a piece of work."""
        self.stream.enqueue(work, cost)

    def _run(self, kernel: Kernel, *launch: Any) -> None:
        for i, value in enumerate(launch[2]):
            if isinstance(value, int) and value:
                self._check(value, 0, f"argument {i} of {kernel.name}")
        kernel(*launch, self.order)

    def _check(self, address: int, nbytes: int, what: str) -> None:
        """KernelError if these bytes are not all in one array of this card, or of the host, or no longer."""
        if not (self._arrays.hold(address, nbytes) or _PINNED.hold(address, nbytes)):
            raise KernelError(f"{what}: {nbytes} bytes at {address:#x} are in no array of {self.name}")

    def _give_back(self, address: int, nbytes: int) -> None:
        self._used -= nbytes
        self._arrays.remove(address, nbytes)


class _Graph:
    """What was recorded: as one launch on the card's clock."""

    def __init__(self, graph: StreamGraph) -> None:
        self._graph = graph

    def launch(self) -> None:
        self._graph.launch(LAUNCH)
