"""A stream whose work is done by whoever waits for it: no thread of its own has to wake up for a token."""

import threading
from collections import deque
from dataclasses import dataclass

from ggrun.devices.streams import Attempts, Event, Later, Work
from ggrun.errors import GgrunError


@dataclass(frozen=True)
class _Step:
    """Work; or an event of another stream that has to come first."""

    work: Work
    awaited: Event | None = None


class Passed:
    """A place in an OnDemand stream. Who waits for it, or looks whether it was passed, does the work."""

    def __init__(self, stream: "OnDemand") -> None:
        self.error: BaseException | None = None
        self.passed = False
        self._stream = stream

    @property
    def done(self) -> bool:
        """Whether the stream has come there, after it has gone on as far as it can without waiting."""
        if not self.passed:
            self._stream.advance()
        return self.passed

    def block(self) -> None:
        """Do what is before it."""
        self._stream.run_until(self)


class OnDemand(Later):
    """See Stream. For what takes no time itself: copies of what a network brings."""

    def __init__(self) -> None:
        super().__init__(Attempts())
        self._steps: deque[_Step] = deque()
        self._lock = threading.RLock()
        self._closed = False

    def record(self) -> Passed:
        """An event behind all that was enqueued before."""
        event = Passed(self)

        def arrive() -> None:
            event.error, event.passed = self._attempts.error, True

        self._put(arrive)
        return event

    def run_until(self, event: Passed) -> None:
        """Do what is before an event; one thread at a time, in order."""
        while not event.passed:
            with self._lock:
                if not event.passed:
                    self._steps.popleft().work()

    def advance(self) -> None:
        """Do what can be done without waiting; nothing, where another thread is at it."""
        if not self._lock.acquire(blocking=False):
            return
        try:
            while self._steps and (
                self._attempts.error or (awaited := self._steps[0].awaited) is None or awaited.done
            ):
                self._steps.popleft().work()
        finally:
            self._lock.release()

    def close(self) -> None:
        """Take no more."""
        self._closed = True

    def _put(self, step: Work, awaited: Event | None = None) -> None:
        if self._closed:
            raise GgrunError("the model is closed")
        self._steps.append(_Step(step, awaited))
