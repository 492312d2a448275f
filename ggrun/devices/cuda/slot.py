"""Memory of a card where weights lie by turns: see base.Slot."""

from collections.abc import Callable

from ggrun.devices.cuda.driver import Driver
from ggrun.devices.cuda.memory import ALIGNMENT, CudaMemory, CudaWeight, block, needed_for
from ggrun.devices.streams import Stream, Work
from ggrun.errors import GgrunError
from ggrun.gguf import Tensor


class CudaSlot:
    """Loaded through pinned buffers, as all weights are.

    The host copies to these, which takes longer than the bus does: while it copies, the card has what was
    enqueued before.

    name     the device's
    check    raises Interrupted when the device is: to load much takes a while
    """

    def __init__(self, driver: Driver, name: str, memory: CudaMemory, check: Callable[[], None]) -> None:
        self._driver, self._name, self._memory, self._check = driver, name, memory, check
        self._end = 0

    @property
    def stream(self) -> Stream:
        """The driver's second one."""
        return self._driver.transfers

    def begin(self) -> None:
        """Place weights at the front."""
        self._end = 0

    def weight(
        self, tensor: Tensor, rows: tuple[int, int], columns: tuple[int, int]
    ) -> tuple[CudaWeight, Work]:
        """A block of a tensor; and what enqueues its upload, or raises Interrupted."""
        data, begin = block(tensor, rows, columns), self._end
        if begin + data.nbytes > self._memory.nbytes:
            raise GgrunError(f"{self._name}: no room for the weights {tensor.name} beside others")
        self._end = begin + -(-data.nbytes // ALIGNMENT) * ALIGNMENT
        address = self._memory.address + begin

        def load() -> None:
            self._check()
            with needed_for(f"the weights {tensor.name}", self._name):
                self._driver.upload(address, data, beside=True)

        return CudaWeight.of(tensor, data, self._memory, address), load
