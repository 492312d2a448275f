"""Feed-forwards that the CPU holds, computed by a card where a batch is large: their weights come for it.

Two slots of the card have them by turns: while it computes with what is in one, the other is filled.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ggrun.devices.base import Device, Slot
from ggrun.devices.streams import Event
from ggrun.engine.batch import Batch
from ggrun.engine.outputs import Outputs
from ggrun.engine.stage import Hop
from ggrun.engine.weights import Weights
from ggrun.engine.workspace import Sender
from ggrun.plan.offload import SLOTS


class Turns:
    """A slot, and the order of those who use it: loading waits for programs, and programs for loading.

    What a batch has loaded serves those behind it too, until others take the slot.
    """

    def __init__(self, device: Device, slot: Slot) -> None:
        self.slot, self._stream = slot, device.stream
        self.forget()

    def forget(self) -> None:
        """Begin anew, when all is at rest after an error: what was to be loaded may not have come."""
        self._loaded: Weights | None = None
        self._free: Event | None = None

    @contextmanager
    def holding(self, weights: Weights) -> Iterator[None]:
        """Programs that are enqueued meanwhile find these weights in the slot."""
        if self._loaded is not weights:
            if self._free:
                self.slot.stream.wait(self._free)
            for load in weights.loads:
                load()
            self._stream.wait(self.slot.stream.record())
            self._loaded = weights
        yield
        self._free = self._stream.record()


def turns_of(device: Device, nbytes: int) -> list[Turns]:
    """The slots of a card; none of a device that has no memory of its own. GgrunError: there is no room."""
    slots = [device.slot(nbytes) for _ in range(SLOTS)]
    return [Turns(device, slot) for slot in slots if slot]


class OffloadedStage:
    """A stage that goes two ways: by the CPU, or by a card for batches of `least` tokens or more. See Hop."""

    def __init__(self, cpu: Hop, card: Hop, least: int, turns: Turns, weights: Weights) -> None:
        self._cpu, self._card, self._least = cpu, card, least
        self._turns, self._weights = turns, weights

    def run(self, batch: Batch) -> None:
        """Enqueue what is computed, and the loading of weights before it."""
        way = self._way(batch)
        if way is self._cpu:
            way.run(batch)
            return
        with self._turns.holding(self._weights):
            way.run(batch)

    def accept(self, senders: Sequence[Sender], batch: Batch, slot: int) -> None:
        """Enqueue that the residual stream goes to whom it may concern."""
        self._way(batch).accept(senders, batch, slot)

    def receive(self, batch: Batch, slot: int) -> None:
        """Enqueue that it is taken in."""
        self._way(batch).receive(batch, slot)

    def send(self, batch: Batch, to: Hop, slot: int) -> None:
        """Enqueue that it goes on from there."""
        self._way(batch).send(batch, to, slot)

    def download(self, batch: Batch, outputs: Outputs) -> None:
        """There are no outputs of a feed-forward."""
        self._way(batch).download(batch, outputs)

    def _way(self, batch: Batch) -> Hop:
        return self._cpu if len(batch.tokens) < self._least else self._card
