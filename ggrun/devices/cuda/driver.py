"""What runs CUDA kernels: a card, by CuPy, or the emulator of tools/cuda_emulator.

Addresses are plain numbers. All that is launched or copied goes to the driver's stream, in order, but for
`write`. GgrunErrors name the card, what was to be done, and the bytes where memory is short.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from ggrun.devices.streams import Stream
from ggrun.errors import GgrunError


class OutOfMemory(GgrunError):
    """A card has no room for something, or the host none that could be pinned."""


class Allocation(Protocol):
    """Memory for as long as the object lives; aligned to 256 bytes."""

    address: int
    nbytes: int


class Kernel(Protocol):
    """A compiled kernel."""

    name: str


class Graph(Protocol):
    """Launches that were recorded, to be enqueued together."""

    def launch(self) -> None:
        """Enqueue them."""


@dataclass(frozen=True)
class Gemm:
    """y[n, rows] = scale * x[n, k] . w[rows, k]^T: addresses of float16 and, for y, of float32.

    x_stride, y_stride: values from one row to the next
    """

    x: int
    w: int
    y: int
    n: int
    rows: int
    k: int
    x_stride: int
    y_stride: int
    scale: float
    name = "gemm"


class CardStream(Stream, Protocol):
    """A stream of a card."""

    rested: int
    """The newest ticket that was given before a `synchronize` that has come to its end."""

    def ticket(self) -> int:
        """A number, larger than all before: what was enqueued until now is done when `rested` reaches it."""


class Driver(Protocol):
    """One card, or a part of it."""

    name: str
    """As its maker calls it: "NVIDIA H200"."""
    arch: int
    """The compute capability times ten: 75, 80, 90."""
    multiprocessors: int
    l2_bytes: int
    """The second-level cache."""
    identity: str
    """Which card it is, the same for all drivers of one."""

    @property
    def stream(self) -> CardStream:
        """Where the card's work is enqueued."""

    @property
    def transfers(self) -> Stream:
        """A second stream, for what comes by way of the host while kernels run."""

    def free_memory(self) -> tuple[int, int]:
        """Free and all bytes."""

    def allocate(self, nbytes: int) -> Allocation:
        """Memory of the card, with anything in it; OutOfMemory when there is not so much."""

    def allocate_on_host(self, nbytes: int) -> Allocation:
        """Memory of the host that the card reads and writes where it lies; OutOfMemory when there is none."""

    def kernel(self, file: str, name: str, **defines: str | int) -> Kernel:
        """A kernel of kernels/cuda/`file`, compiled with these macros, once."""

    def launch(
        self,
        kernel: Kernel,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        args: Sequence[Any],
        shared: int = 0,
    ) -> None:
        """Enqueue a kernel. args: a pointer is an int, everything else a numpy scalar of the right type."""

    @property
    def has_gemm(self) -> bool:
        """Whether there is what `gemm` needs: a library that may be missing."""

    def gemm(self, product: Gemm) -> None:
        """Enqueue a product, summed up in float32. It cannot be in a graph."""

    @property
    def capturing(self) -> bool:
        """Whether what is enqueued now goes into a graph that is being recorded."""

    def graph(self, record: Callable[[], None]) -> Graph:
        """What `record` enqueues, as one thing to enqueue; nothing of it is done now.

        Other cards take part: what their streams are given, from when they wait for an event of this one
        until this one waits for theirs. Nothing inside can wait for an event of outside, nor the other way.
        """

    def fill(self, address: int, byte: int, nbytes: int) -> None:
        """Enqueue that memory is full of one byte."""

    def write(self, address: int, data: NDArray[Any]) -> None:
        """Copy from the host now, whatever the stream does; data is contiguous."""

    def upload(self, address: int, data: NDArray[Any], beside: bool = False) -> None:
        """Enqueue a copy from the host, row after row; `data` must not change before it is done.

        beside: in `transfers`
        """

    def download(self, data: NDArray[Any], address: int) -> None:
        """Enqueue a copy to the host. Rows of two dimensions may be parts of longer ones.

        It is there when the host has waited for the stream, or for an event behind it, and for the host's
        work that the stream does later. Two that are under way must not go to the same memory.
        """

    def can_reach(self, card: "Driver") -> bool:
        """Whether the machine has peer access from this card to another one's memory."""

    def reach(self, card: "Driver") -> None:
        """Enable it, for as long as the process lives; GgrunError where there is none."""

    def copy(self, target: int, source: int, nbytes: int, card: "Driver | None" = None) -> None:
        """Enqueue a copy within the card or between it and the host's pinned memory; or directly to another
        card, which it must `reach`."""

    def receive(self, target: int, source: int, nbytes: int) -> None:
        """Enqueue in `transfers` a copy from the host's pinned memory."""

    def watched(self, what: str, instead: str, behind: Sequence[Stream] = ()) -> AbstractContextManager[None]:
        """Where what is enqueued inside takes more than seconds on the card, the process ends with a line.

        For what other cards take part in, which may hang; nothing else can be done then. In a graph that is
        recorded nothing is watched.

        what, instead    its name, and what users can do
        behind           other streams that take part, and may have to do other things first
        """

    def close(self) -> None:
        """Give back what the driver has of the card."""
