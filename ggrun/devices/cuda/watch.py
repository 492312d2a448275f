"""What may hang is watched: from outside, since whoever waits for a card cannot look at a clock."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from weakref import WeakMethod, finalize

from ggrun.devices.streams import Event, Stream
from ggrun.errors import GgrunError

LONGEST = 7.0
"""Seconds that a reduction may take once all cards have come to it: a slow bus needs less than one."""
LOOK = 1.0
"""Seconds between two looks."""


class Watch:
    """Sees that what all streams have come to ends, and calls `give_up` with a reason when it does not.

    give_up    a method; it is called once, in another thread
    """

    def __init__(self, streams: Sequence[Stream], give_up: Callable[[str], None]) -> None:
        self._streams, self._open = streams, _Open()
        end = threading.Event()
        finalize(self, end.set).atexit = False
        args = end, self._open, WeakMethod(give_up)
        threading.Thread(target=_look, args=args, daemon=True, name="ggrun-watch").start()

    @contextmanager
    def one(self) -> Iterator[None]:
        """Watch what is enqueued inside."""
        begun = [stream.record() for stream in self._streams]
        yield
        self._open.add(begun, self._streams[0].record())


class _Open:
    """Events before what has not ended yet, one a stream, and one behind it."""

    def __init__(self) -> None:
        self._pairs: deque[tuple[Sequence[Event], Event]] = deque()
        self._lock = threading.Lock()

    def add(self, begun: Sequence[Event], ended: Event) -> None:
        with self._lock:
            self._drop()
            self._pairs.append((begun, ended))

    def running(self) -> Event | None:
        """The event behind what has begun and not ended: one thing at most, as streams keep their order."""
        with self._lock:
            self._drop()
            if not self._pairs:
                return None
            begun, ended = self._pairs[0]
            return ended if all(event.done for event in begun) else None

    def _drop(self) -> None:
        while self._pairs and self._pairs[0][1].done:
            self._pairs.popleft()


def _look(end: threading.Event, opened: _Open, give_up: "WeakMethod[Callable[[str], None]]") -> None:
    """Until `end`, or what is watched hangs. It keeps nothing alive of what it watches for."""
    running, since = None, 0.0
    while not end.wait(LOOK):
        if (now := opened.running()) is not running:
            running, since = now, time.monotonic()
        if running is not None and time.monotonic() - since > LONGEST:
            if method := give_up():
                method(f"a reduction did not end in {LONGEST:.0f} s")
            return


def within(seconds: float, work: Callable[[], None], what: str) -> None:
    """Do work in a thread of its own, which is left behind when it takes too long: then GgrunError."""
    errors: list[BaseException] = []

    def attempt() -> None:
        try:
            work()
        except BaseException as error:  # whatever it is, the thread that waits gets it
            errors.append(error)

    thread = threading.Thread(target=attempt, daemon=True, name="ggrun-within")
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise GgrunError(f"{what} in {seconds:.0f} s")
    if errors:
        raise errors[0]
