"""How much of a worker's memory its clients have: each has its own reserved before anything is loaded."""

import threading
from collections.abc import Callable, Mapping

from ggrun.errors import GgrunError

_OBJECTS = 4 << 10
"""Bytes of the objects of a batch or a result, more than they take: a message, arrays, a job."""


class NoRoom(GgrunError):
    """A client wants more memory than is left."""


class Ledger:
    """Bytes of each device, and of all together.

    most    of all devices together; None: as much as they have
    unused  what others, who may have come since, leave of a device now; None: that is not known
    """

    def __init__(
        self,
        capacity: Mapping[str, int],
        most: int | None = None,
        unused: Callable[[str], int | None] = lambda device: None,
    ) -> None:
        self._capacity, self._most, self._unused = dict(capacity), most, unused
        self._taken = dict.fromkeys(capacity, 0)
        self._lock = threading.Lock()

    def free(self, device: str) -> int:
        """The bytes that a client could have of a device now, if it had all that is free of those before.

        So a client may take what is free of each: what all have together goes to the first devices first.
        """
        with self._lock:
            together = self._left()
            for name in self._capacity:
                free = min(self._free(name), together)
                if name == device:
                    return free
                together -= free
        raise KeyError(device)

    def take(self, needs: Mapping[str, int]) -> None:
        """Reserve bytes of devices, or NoRoom and nothing."""
        with self._lock:
            for device, nbytes in needs.items():
                if nbytes > (free := self._free(device)):
                    raise NoRoom(f"{device}: {_short(nbytes, free)} of what this worker gives to its clients")
            total = sum(needs.values())
            if total > (free := self._left()):
                raise NoRoom(f"{', '.join(needs)}: {_short(total, free)} (--max-memory)")
            for device, nbytes in needs.items():
                self._taken[device] += nbytes

    def give(self, needs: Mapping[str, int]) -> None:
        """Give back what was taken."""
        with self._lock:
            for device, nbytes in needs.items():
                self._taken[device] -= nbytes

    def _free(self, device: str) -> int:
        left, unused = self._capacity[device] - self._taken[device], self._unused(device)
        return left if unused is None else max(0, min(left, unused))

    def _left(self) -> int:
        """The bytes that may still be taken of all together."""
        most = sum(self._capacity.values()) if self._most is None else self._most
        return most - sum(self._taken.values())


class UnderWay:
    """Bytes of batches and results of each client that are on their way: beside what the ledger has.

    most    of all clients together
    """

    def __init__(self, most: int = 1 << 30) -> None:
        self._most = most
        self._held: dict[object, int] = {}
        self._lock = threading.Lock()

    def enter(self, client: object) -> None:
        """Somebody comes."""
        with self._lock:
            self._held[client] = 0

    def add(self, client: object, nbytes: int) -> None:
        """Count more, or less; of one that has left, nothing."""
        with self._lock:
            if client in self._held:
                self._held[client] += nbytes

    def check(self, client: object, announced: int) -> None:
        """NoRoom for a client that has more than it announced, or than its share where all have too much.

        Who keeps to its share goes on, whatever others do: so all have up to twice the most.
        """
        with self._lock:
            held, together = self._held.get(client, 0), sum(self._held.values())
            if held > announced:
                raise NoRoom(f"{held >> 20} MiB of batches are under way: more than were announced")
            if together > self._most and held > self._most // len(self._held):
                more = f"{together >> 20} MiB of all clients: too many"
                raise NoRoom(f"{held >> 20} MiB of batches are under way, {more}")

    def leave(self, client: object) -> None:
        """It has nothing any more."""
        with self._lock:
            self._held.pop(client, None)


class Held:
    """What one client has under way: each thing with its bytes, and the objects that it is made of.

    most    bytes of it all, at most
    end     ends its session, from any thread
    """

    def __init__(self, under_way: UnderWay, end: Callable[[NoRoom], object]) -> None:
        self.most = 0
        self._under_way, self._end = under_way, end

    def open(self) -> None:
        """The client has come."""
        self._under_way.enter(self)

    def hold(self, nbytes: int) -> None:
        """Count a thing, while who was given it wakes up: for a moment it may be less than nothing.

        It is the end for a client that sends without end, or does not read, or who is pushed to does not.
        """
        self._under_way.add(self, nbytes + _OBJECTS)
        try:
            self._under_way.check(self, self.most)
        except NoRoom as error:  # the thread may be a stream's or another worker's, which has no use for it
            self._end(error)

    def release(self, nbytes: int) -> None:
        """It is under way no more."""
        self._under_way.add(self, -nbytes - _OBJECTS)

    def close(self) -> None:
        """The client has left."""
        self._under_way.leave(self)


def _short(needed: int, free: int) -> str:
    """Both in MiB, to the sides that show which one is more."""
    return f"{-(-needed >> 20)} MiB are needed, {free >> 20} MiB are left"
