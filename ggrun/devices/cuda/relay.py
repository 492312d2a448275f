"""Copies from one card to another through pinned memory of the host, for cards that cannot copy directly."""

from functools import cached_property

from ggrun.devices.cuda.driver import Allocation, Driver
from ggrun.devices.streams import Event

PIECE, BUFFERS = 1 << 20, 4
"""Bytes that go at once, and how many such pieces are on their way: enough to keep both links busy."""


class Relay:
    """The way from one card to another.

    A piece goes to the host in the giver's stream and from there in the taker's second one, while the next
    piece comes. The giver's stream waits for the last: so the copy is in its order, as a direct one would be,
    and all buffers are free again when the next copy begins.
    """

    def __init__(self, giver: Driver, taker: Driver) -> None:
        self._giver, self._taker = giver, taker

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """Enqueue a copy from the giver's memory to the taker's."""
        giver, taker, arrived = self._giver, self._taker, list[Event]()
        for i, begin in enumerate(range(0, nbytes, PIECE)):
            size = min(PIECE, nbytes - begin)
            buffer = self._buffers[i % BUFFERS].address
            if i >= BUFFERS:
                giver.stream.wait(arrived[i - BUFFERS])
            giver.copy(buffer, source + begin, size)
            taker.transfers.wait(giver.stream.record())
            taker.receive(target + begin, buffer, size)
            arrived.append(taker.transfers.record())
        if arrived:
            giver.stream.wait(arrived[-1])

    @cached_property
    def _buffers(self) -> list[Allocation]:
        """Most pairs of cards never copy anything: they need none."""
        return [self._giver.allocate_on_host(PIECE) for _ in range(BUFFERS)]
