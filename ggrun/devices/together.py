"""How the work of devices that share rows is enqueued: piece by piece, or as one graph of several cards."""

from typing import Protocol

from ggrun.devices.cuda.device import Cuda
from ggrun.devices.cuda.joint import JointGraphs
from ggrun.devices.cuda.program import FEW
from ggrun.devices.cuda.recorder import CudaRecorder
from ggrun.devices.exchange import AllReduce, Members
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


PIECE_BY_PIECE = PieceByPiece()
"""One is enough: it has nothing of its own."""


class ByGraphs:
    """Cards, each with its recorder. sums: what they sum with."""

    def __init__(self, cards: list[tuple[Cuda, CudaRecorder]], sums: AllReduce) -> None:
        self._graphs = JointGraphs([card.driver for card, _ in cards], sums)
        self._recorder = cards[0][1]  # all are fed alike

    def run(self, enqueue: Work) -> None:
        """Replay a graph of it, if there are few tokens, and have been as many before."""
        counts = self._recorder.counts
        self._graphs.run(counts if counts.tokens <= FEW else None, enqueue)

    def forget(self) -> None:
        """Record anew: there may be another way to sum now."""
        self._graphs.forget()


def open_together(members: Members, sums: AllReduce) -> Together:
    """For devices that sum what they have after each half layer."""
    cards = [
        (device, recorder)
        for device, recorder in members
        if isinstance(device, Cuda) and isinstance(recorder, CudaRecorder)
    ]
    return ByGraphs(cards, sums) if len(cards) == len(members) else PIECE_BY_PIECE
