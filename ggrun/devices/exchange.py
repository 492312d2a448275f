"""Sums over the devices of a stage, made of copies and additions: any kinds of devices can take part."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from ggrun.devices.base import Device, Place, Recorder
from ggrun.devices.streams import Event
from ggrun.devices.wire import DTYPES
from ggrun.errors import UsageError

Members = Sequence[tuple[Device, Recorder]]
"""Devices, and where each has its buffers."""

_COPY = 64 << 10
"""Bytes on the wire that take as long as a copy does before its first byte: some 5 us at 12 GB/s."""
_MOST_NARROW = 8
"""The most parts of bfloat16 that are added at once."""


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
        """Begin anew, when all devices are at rest after an error, or wait for each other."""

    def in_graphs(self, rows: int) -> bool:
        """Whether sums of so many rows can be in a graph of all these devices, if they are cards."""


class _Wire:
    """What travels of a device's part: the part itself, or the same rounded to bfloat16.

    All devices add up what travelled, their own too: so the sum has the same bits on each of them.
    """

    def __init__(self, members: Members, width: int, kind: str) -> None:
        if kind == "bf16" and len(members) > _MOST_NARROW:
            raise UsageError(f"bf16 on the wire: {len(members)} devices share rows, it takes {_MOST_NARROW}")
        self.kind, self.itemsize = kind, DTYPES[kind].itemsize
        self._devices = [device for device, _ in members]
        self._rooms = [ops.mailbox(width, kind) for _, ops in members] if kind != "f32" else []

    def outgoing(self, rank: int, place: Place, rows: int) -> Place:
        """Enqueue what has to be done before a part can travel; where it is then."""
        if not self._rooms:
            return place
        self._devices[rank].narrow(place, rows, self._rooms[rank])
        return self._rooms[rank]


class _Rank:
    """A device of an exchange, and what it needs for that: room for the parts of the others."""

    def __init__(self, device: Device, ops: Recorder, width: int, kind: str, others: Sequence[int]) -> None:
        self.device = device
        self.received: dict[int, Place] = {i: ops.mailbox(width, kind) for i in others}
        self.free: Event | None = None
        """When what was received has been added up."""


class Exchange:
    """Each device adds up all parts of some rows, in the order of the devices.

    Few bytes: each device sends its part to all others and adds up all rows. For few devices nothing is
    faster: one transfer each, all at the same time. Many bytes, from three devices on: each adds up a share
    of the rows, and sends the sums to the others (reduce-scatter and all-gather), which is less traffic. The
    sum has the same bits either way.

    wire    what travels: f32 or bf16
    """

    def __init__(self, members: Members, width: int, wire: str = "f32") -> None:
        self._wire, self._width = _Wire(members, width, wire), width
        self._everyone = range(len(members))
        self._ranks = [
            _Rank(device, ops, width, self._wire.kind, [j for j in self._everyone if j != i])
            for i, (device, ops) in enumerate(members)
        ]

    def all_reduce(self, parts: Sequence[Part], rows: int) -> None:
        """Enqueue that the first rows of each part become the sum of all parts."""
        givers = [i for i in self._everyone if not parts[i].empty]
        if not (shared := self._is_shared(rows)):
            shares = [(0, rows)] * len(self._ranks)
        else:
            shares = _shares(rows, len(self._ranks), 1 if self._width % 4 == 0 else 4)
        adders = [i for i, (begin, end) in enumerate(shares) if begin < end]
        # Sums are sent to all who are ready for them; parts come from those who have one.
        senders = self._everyone if shared else givers
        outgoing = {i: self._wire.outgoing(i, parts[i].place, rows) for i in givers}
        sent = {i: self._send(i, outgoing.get(i), shares, adders) for i in senders}
        for i in adders:
            self._add(i, parts[i].place, outgoing, shares[i], sent)
        if shared:
            self._gather(parts, shares, adders)

    def forget(self) -> None:
        """Begin anew, when all devices are at rest after an error, or wait for each other."""
        for rank in self._ranks:
            rank.free = None

    def in_graphs(self, rows: int) -> bool:
        """Copies and additions can."""
        return True

    def _is_shared(self, rows: int) -> bool:
        """Whether shares are worth it: they are twice as many copies for each device, of fewer bytes."""
        others, values = len(self._ranks) - 1, rows * self._width
        whole = others * values * self._wire.itemsize
        in_shares = others * values * (self._wire.itemsize + DTYPES["f32"].itemsize) / len(self._ranks)
        return whole - in_shares > others * _COPY

    def _send(
        self, giver: int, part: Place | None, shares: Sequence[tuple[int, int]], adders: Sequence[int]
    ) -> Event:
        """Copies on the giver's stream: its next program cannot overwrite the part before they are done."""
        device = self._ranks[giver].device
        for i in adders:
            if i == giver or part is None:
                continue
            rank, (begin, end) = self._ranks[i], shares[i]
            if rank.free:
                device.stream.wait(rank.free)
            device.copy(device.part(part, begin), end - begin, rank.device, rank.received[giver])
        return device.stream.record()

    def _add(
        self,
        adder: int,
        target: Place,
        outgoing: dict[int, Place],
        share: tuple[int, int],
        sent: dict[int, Event],
    ) -> None:
        """Add up what came, in the order of the devices."""
        rank, (begin, end) = self._ranks[adder], share
        for i, event in sent.items():
            if i != adder:
                rank.device.stream.wait(event)
        places = [
            rank.device.part(place, begin) if i == adder else rank.received[i]
            for i, place in outgoing.items()
        ]
        if outgoing != {adder: target}:
            rank.device.sum(places, end - begin, rank.device.part(target, begin))
        rank.free = rank.device.stream.record()

    def _gather(
        self, parts: Sequence[Part], shares: Sequence[tuple[int, int]], adders: Sequence[int]
    ) -> None:
        """Each sends its share of the sums to all others, as float32."""
        come: dict[int, Event] = {}
        for adder in adders:
            device, (begin, end) = self._ranks[adder].device, shares[adder]
            for i in self._everyone:
                if i != adder:
                    to, target = self._ranks[i].device, self._ranks[i].device.part(parts[i].place, begin)
                    device.copy(device.part(parts[adder].place, begin), end - begin, to, target)
            come[adder] = device.stream.record()
        for i, rank in enumerate(self._ranks):
            for adder, event in come.items():
                if adder != i:
                    rank.device.stream.wait(event)


def _shares(rows: int, devices: int, unit: int) -> list[tuple[int, int]]:
    """Rows from and to, of each device: multiples of `unit`, so that kernels find what they read aligned."""
    cuts = [min(rows, -(-rows * i // (devices * unit)) * unit) for i in range(devices + 1)]
    return list(pairwise(cuts))
