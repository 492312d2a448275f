"""How the work of devices that share rows is enqueued: piece by piece, or as one graph of several cards."""

from typing import Protocol

from ggrun.devices.exchange import AllReduce, Members
from ggrun.devices.names import all_cards
from ggrun.devices.streams import Work


class Together(Protocol):
    """Enqueues what devices do for the batch that they were fed with: programs, and sums between them."""

    def run(self, enqueue: Work) -> None:
        """Enqueue it; `enqueue` does so piece by piece."""

    def forget(self) -> None:
        """Begin anew, when all devices are at rest after an error."""


class PieceByPiece:
    """Any devices."""

    def run(self, enqueue: Work) -> None:
        """Do that."""
        enqueue()

    def forget(self) -> None:
        """Nothing is kept."""


PIECE_BY_PIECE: Together = PieceByPiece()
"""One is enough: it has nothing of its own."""


def open_together(members: Members, sums: AllReduce) -> Together:
    """For devices that sum what they have after each half layer."""
    if not all_cards(device.name for device, _ in members):
        return PIECE_BY_PIECE
    from ggrun.devices.cuda.joint import ByGraphs

    return ByGraphs(members, sums)
