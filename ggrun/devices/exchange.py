"""Sums over the devices of a stage, made of copies and additions: any kinds of devices can take part."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ggrun.devices.base import Device, Place, Recorder
from ggrun.devices.streams import Event


@dataclass(frozen=True)
class Part:
    """What one device adds to a sum, and where the sum goes."""

    place: Place
    empty: bool = False  # it adds nothing


class AllReduce(Protocol):
    """A way to sum over devices. The sum has the same bits on each of them, and in every run."""

    def all_reduce(self, parts: Sequence[Part], rows: int) -> None:
        """Enqueue that the first rows of each part become the sum of all parts."""

    def forget(self) -> None:
        """Begin anew, when all devices are at rest after an error."""


class _Rank:
    """A device of an exchange, and what it needs for that: room for the parts of the others."""

    def __init__(self, device: Device, ops: Recorder, width: int, others: Sequence[int]) -> None:
        self.device = device
        self.received: dict[int, Place] = {i: ops.mailbox(width) for i in others}
        self.free: Event | None = None
        """When what was received has been added up."""


class Exchange:
    """Each device sends its part to all others, and adds up all parts in the order of the devices.

    So the sum has the same bits on each of them, and in every run. For few devices nothing is faster: one
    transfer each, all at the same time. Devices that know something better for many (NCCL) will bring a
    class with the same method.
    """

    def __init__(self, members: Sequence[tuple[Device, Recorder]], width: int) -> None:
        everyone = range(len(members))
        self._ranks = [
            _Rank(device, ops, width, [j for j in everyone if j != i])
            for i, (device, ops) in enumerate(members)
        ]

    def all_reduce(self, parts: Sequence[Part], rows: int) -> None:
        """Enqueue that the first rows of each part become the sum of all parts."""
        givers = [i for i, part in enumerate(parts) if not part.empty]
        sent = {i: self._send(i, parts[i], rows) for i in givers}
        for i, rank in enumerate(self._ranks):
            for giver in givers:
                if giver != i:
                    rank.device.stream.wait(sent[giver])
            places = [parts[i].place if giver == i else rank.received[giver] for giver in givers]
            if places != [parts[i].place]:
                rank.device.sum(places, rows, parts[i].place)
            rank.free = rank.device.stream.record()

    def forget(self) -> None:
        """Begin anew, when all devices are at rest after an error."""
        for rank in self._ranks:
            rank.free = None

    def _send(self, giver: int, part: Part, rows: int) -> Event:
        """Copies on the giver's stream: its next program cannot overwrite the part before they are done."""
        device = self._ranks[giver].device
        for i, rank in enumerate(self._ranks):
            if i == giver:
                continue
            if rank.free:
                device.stream.wait(rank.free)
            device.copy(part.place, rows, rank.device, rank.received[giver])
        return device.stream.record()
