"""Whether copies between two cards come right, and how fast they are: what the self-test runs.

On boards whose IOMMU or PCIe switches stand in the way, direct copies lose bytes without any error, or never
end. So nothing is believed here: every byte is looked at, in both directions at once, again and again.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggrun.devices.cuda.driver import Driver
from ggrun.devices.cuda.relay import Relay
from ggrun.errors import GgrunError

_ROOM = 16 << 20
"""Bytes of each card that are copied from, and to."""
_SIZES, _MOST, _ROUNDS = (4096, 100_004, 1 << 20, _ROOM), 64, 3
"""Bytes of a copy: those of one token, of odd ones, of prompts. So many copies follow each other at most."""
_HOPS, _LARGE = 100, 4
"""Copies that are timed: of the smallest size, there and back; of the largest."""
_REPEATS = 3

Copy = Callable[[int, int, int], None]  # target, source, bytes


def check_direct(drivers: Sequence[Driver]) -> list[dict[str, float]]:
    """Of copies that need peer access, for two cards; see _check."""
    one, other = drivers
    if not (one.can_reach(other) and other.can_reach(one)):
        raise GgrunError("the machine has no peer access between them")
    one.reach(other)
    other.reach(one)
    ends = [_End(driver) for driver in drivers]
    return _check(ends, [_direct(one, other), _direct(other, one)])


def check_staged(drivers: Sequence[Driver]) -> list[dict[str, float]]:
    """Of copies through the host's memory, for two cards; see _check."""
    one, other = drivers
    ends = [_End(driver) for driver in drivers]
    return _check(ends, [Relay(one, other).copy, Relay(other, one).copy])


def _direct(giver: Driver, taker: Driver) -> Copy:
    return lambda target, source, nbytes: giver.copy(target, source, nbytes, taker)


class _End:
    """A card, and memory of it to copy from and to; OutOfMemory where it has none left."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self._source, self._target = driver.allocate(_ROOM), driver.allocate(_ROOM)
        self.source, self.target = self._source.address, self._target.address

    def prepare(self, given: NDArray[np.uint8], expected: NDArray[np.uint8]) -> None:
        """Something to give; and where copies come to, none of the bytes that are expected there."""
        self.driver.write(self.source, given)
        self.driver.write(self.target, ~expected)

    def received(self, nbytes: int) -> NDArray[np.uint8]:
        """What has come."""
        here = np.empty(nbytes, np.uint8)
        self.driver.download(here, self.target)
        self.driver.stream.synchronize()
        return here


def _check(ends: Sequence[_End], copies: Sequence[Copy]) -> list[dict[str, float]]:
    """The bandwidth (bytes a second) and latency (seconds) there and back; GgrunError where bytes differ."""
    for round_, size in product(range(_ROUNDS), _SIZES):
        total = min(_ROOM, _MOST * size) // size * size
        random = np.random.default_rng(round_)
        here, there = (np.frombuffer(random.bytes(total), np.uint8) for _ in ends)
        ends[0].prepare(here, there)
        ends[1].prepare(there, here)
        for begin in range(0, total, size):
            _both_ways(ends, copies, begin, size)
        _settle(ends)
        for end, expected in zip(ends, (there, here), strict=True):
            if wrong := int(np.count_nonzero(end.received(total) != expected)):
                raise GgrunError(f"{wrong} of {total} bytes came wrong, and no error was reported")
    latency = _hop(ends, copies)
    return [{"bandwidth": rate, "latency": latency} for rate in _bandwidths(ends, copies)]


def _both_ways(ends: Sequence[_End], copies: Sequence[Copy], begin: int, size: int) -> None:
    """Enqueue a copy there and one back."""
    one, other = ends
    copies[0](other.target + begin, one.source + begin, size)
    copies[1](one.target + begin, other.source + begin, size)


def _hop(ends: Sequence[_End], copies: Sequence[Copy]) -> float:
    """Seconds of a small copy and of the event that tells the other card: what a stage waits for."""
    one, other = (end.driver for end in ends)

    def to_and_fro() -> None:
        for _ in range(_HOPS):
            copies[0](ends[1].target, ends[0].source, _SIZES[0])
            other.stream.wait(one.stream.record())
            copies[1](ends[0].target, ends[1].source, _SIZES[0])
            one.stream.wait(other.stream.record())

    return _seconds(ends, to_and_fro) / (2 * _HOPS)


def _bandwidths(ends: Sequence[_End], copies: Sequence[Copy]) -> Iterator[float]:
    for copy, (giver, taker) in zip(copies, (ends, ends[::-1]), strict=True):
        target, source = taker.target, giver.source

        def many(copy: Copy = copy, target: int = target, source: int = source) -> None:
            for _ in range(_LARGE):
                copy(target, source, _ROOM)

        yield _LARGE * _ROOM / _seconds(ends, many)


def _seconds(ends: Sequence[_End], work: Callable[[], Any]) -> float:
    """The least that it takes."""
    found = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        work()
        _settle(ends)
        found.append(time.perf_counter() - start)
    return min(found)


def _settle(ends: Sequence[_End]) -> None:
    for end in ends:
        end.driver.stream.synchronize()
