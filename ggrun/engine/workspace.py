"""What all runners of one device share: weights, a recorder with its buffers and inputs, and an inbox."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ggrun.arch.config import Config
from ggrun.devices.base import Device, Limits, Place
from ggrun.devices.streams import Event, Stream
from ggrun.engine.batch import Batch
from ggrun.engine.weights import Weights


class Sender(Protocol):
    """Where the residual stream of a batch is: with a runner, or on its way through a network."""

    @property
    def stream(self) -> Stream:
        """The work that it comes from; what `copy` and `download` enqueue stands there."""

    def copy(self, rows: int, device: Device, place: Place) -> None:
        """Enqueue a copy of the first rows to a place of any device."""

    def download(self, rows: int, out: NDArray[np.float32]) -> None:
        """Enqueue a copy of the first rows to the host: out is [rows, width]."""


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

    def accept(self, sender: Sender, rows: int, slot: int) -> None:
        """Let activations come into the inbox, from another device, the own or a network.

        The copy stands in the sender's stream: what it computes next cannot overwrite them too early.
        """
        box, stream = self._inbox[slot], sender.stream
        if box.free:
            stream.wait(box.free)
        sender.copy(rows, self.device, box.place)
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
