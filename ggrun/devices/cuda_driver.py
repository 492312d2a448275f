"""What runs CUDA kernels: a card, by CuPy, or the emulator of tools/cuda_emulator.

Addresses are plain numbers. All that is launched or copied goes to the driver's stream, in order.
"""

from collections.abc import Sequence
from typing import Any, Protocol

from numpy.typing import NDArray

from ggrun.devices.streams import Stream


class Allocation(Protocol):
    """Memory of the card for as long as the object lives; aligned to 256 bytes."""

    address: int
    nbytes: int


class Kernel(Protocol):
    """A compiled kernel."""

    name: str


class Driver(Protocol):
    """One card, or a part of it."""

    name: str
    """As its maker calls it: "NVIDIA H200"."""
    arch: int
    """The compute capability times ten: 75, 80, 90."""
    multiprocessors: int

    @property
    def stream(self) -> Stream:
        """Where the card's work is enqueued."""

    def free_memory(self) -> tuple[int, int]:
        """Free and all bytes."""

    def allocate(self, nbytes: int) -> Allocation:
        """Memory, with anything in it; GgrunError when there is not so much."""

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

    def upload(self, address: int, data: NDArray[Any]) -> None:
        """Enqueue a copy from the host; `data` must not change before it is done."""

    def download(self, data: NDArray[Any], address: int) -> None:
        """Enqueue a copy to the host."""

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """Enqueue a copy within the card."""
