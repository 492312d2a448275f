"""What all runners of one device share: weights, a recorder with its buffers and inputs, and an inbox."""

from ggrun.arch.config import Config
from ggrun.devices.base import Limits, Place
from ggrun.devices.streams import Event
from ggrun.engine.batch import Batch
from ggrun.engine.weights import Weights


class Workspace:
    """A device's weights and working memory, and what of it other devices may write to.

    A device does one thing after the other, so its runners can all use the same buffers. Only what comes from
    other devices may come while it computes: into an inbox with a slot for each batch that is under way.

    slots    of the inbox: 0 where nothing comes
    """

    def __init__(self, weights: Weights, config: Config, limits: Limits, slots: int) -> None:
        self.weights, self.device = weights, weights.device
        self.ops = self.device.recorder(limits)
        self._experts_used = config.experts_used
        self._inbox = [_Slot(self.ops.mailbox(config.width)) for _ in range(slots)]
        self._fed: Batch | None = None

    def feed(self, batch: Batch) -> None:
        """Let the programs that are enqueued from now on run over a batch."""
        if self._fed is not batch:
            self.ops.feed(lambda inputs: batch.fill(inputs, self._experts_used))
            self._fed = batch

    def forget(self) -> None:
        """Begin anew, when all devices are at rest after an error: what was fed or sent may not have come."""
        self._fed = None
        for box in self._inbox:
            box.arrived = box.free = None

    def send(self, x: Place, rows: int, to: "Workspace", slot: int) -> None:
        """Copy activations to another device's inbox, or the own.

        The copy stands in this device's stream: what it computes next cannot overwrite x too early.
        """
        box, stream = to._inbox[slot], self.device.stream
        if box.free:
            stream.wait(box.free)
        self.device.copy(x, rows, to.device, box.place)
        box.arrived = stream.record()

    def receive(self, slot: int, rows: int, x: Place) -> None:
        """Copy activations from the inbox to where a program wants them."""
        box, stream = self._inbox[slot], self.device.stream
        if box.arrived:
            stream.wait(box.arrived)
        self.device.copy(box.place, rows, self.device, x)
        box.free = stream.record()


class _Slot:
    """Room for the activations of a batch."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.arrived: Event | None = None
        self.free: Event | None = None
