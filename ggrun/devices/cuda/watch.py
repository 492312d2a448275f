"""What may hang is watched: from outside, since whoever waits for a card cannot look at a clock.

Only what has begun on all cards that take part counts: programs before it may take as long as they do.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from weakref import WeakMethod, finalize

from ggrun.devices.kept import tell
from ggrun.devices.streams import Event, Stream
from ggrun.errors import GgrunError

LONGEST = 6.0
"""Seconds that what goes between cards may take once all have come to it: a slow bus needs less than one."""
LOOK = 0.5
"""Seconds between two looks."""
GRACE = 2.0
"""Seconds in which the cards must go on when something was given up."""

_LEAVING = threading.Lock()


@dataclass(frozen=True)
class _Watched:
    """Something between an event in each stream and one behind it.

    what, instead    for users: its name, and what they can do when it hangs
    """

    begun: Sequence[Event]
    ended: Event
    what: str
    instead: str


class Watch:
    """Sees that what all streams have come to ends.

    give_up    a method that makes what hangs end. It is called with a reason, once, in another thread

    Where there is none, or it did not help, the process ends: calls of the driver would never come back.
    """

    def __init__(self, streams: Sequence[Stream], give_up: Callable[[str], None] | None = None) -> None:
        self._streams, self._open = streams, _Open()
        end = threading.Event()
        finalize(self, end.set).atexit = False
        args = end, self._open, give_up and WeakMethod(give_up)
        threading.Thread(target=_look, args=args, daemon=True, name="ggrun-watch").start()

    @contextmanager
    def one(self, what: str, instead: str, behind: Sequence[Stream] = ()) -> Iterator[None]:
        """Watch what is enqueued inside.

        instead    what users can do when it hangs
        behind     streams that have to come to it, too, for this once
        """
        begun = [stream.record() for stream in (*self._streams, *behind)]
        yield
        self._open.add(_Watched(begun, self._streams[0].record(), what, instead))


class _Open:
    """What has not ended yet, in the order of the streams."""

    def __init__(self) -> None:
        self._all: deque[_Watched] = deque()
        self._lock = threading.Lock()

    def add(self, watched: _Watched) -> None:
        with self._lock:
            self._drop()
            self._all.append(watched)

    def running(self) -> _Watched | None:
        """What has begun and not ended: one thing at most, as streams keep their order."""
        with self._lock:
            self._drop()
            first = self._all[0] if self._all else None
            return first if first and all(event.done for event in first.begun) else None

    def _drop(self) -> None:
        while self._all and self._all[0].ended.done:
            self._all.popleft()


def _look(end: threading.Event, opened: _Open, give_up: "WeakMethod[Callable[[str], None]] | None") -> None:
    """Until `end`, or what is watched hangs. It keeps nothing alive of what it watches for."""
    running, left = None, 0.0  # by looks and not by a clock, which goes on while a debugger has us stopped
    while not end.wait(LOOK):
        if (now := opened.running()) is not running:
            running, left = now, LONGEST
        else:
            left -= LOOK
        if running is None or left > 0:
            continue
        why = f"{running.what} did not end in {LONGEST:.0f} s"
        if give_up is None:
            leave(f"{why}: {running.instead}")
        elif method := give_up():
            method(f"{why}: it was given up; {running.instead}")
            del method  # as it keeps alive what it is of
        give_up, left = None, GRACE


def leave(line: str) -> None:
    """End the process with a line: one, of whichever card is the first."""
    with _LEAVING:
        tell(line)
        os._exit(1)


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
