"""Streams: the work of a device in order, and events, which order the streams among each other.

Whoever enqueues must have recorded an event before anything is made to wait for it. So streams never wait
for each other in a circle.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Protocol
from weakref import finalize

from ggrun.devices.threads import ProcessLock
from ggrun.errors import GgrunError

Work = Callable[[], None]


class Event(Protocol):
    """A place in the work of a stream."""

    @property
    def error(self) -> BaseException | None:
        """Why the work before it was not done, once the stream has come there.

        A card's stream may tell what failed behind it, too: whatever fails ends the run.
        """

    @property
    def done(self) -> bool:
        """Whether the stream has come there."""

    def block(self) -> None:
        """Let the calling thread wait until the stream has come there."""


class Mark(Protocol):
    """A moment in the work of a stream, once the stream has come there."""

    def since(self, earlier: Any) -> float:
        """The seconds from an earlier mark of the same stream to this one."""


@dataclass
class Moment:
    """A mark by the host's clock."""

    time: float = 0.0

    def since(self, earlier: "Moment") -> float:
        """The seconds from an earlier one."""
        return self.time - earlier.time


class Stream(Protocol):
    """Work that is done in the order in which it was enqueued, now or later.

    After an error no more work is done, here or in streams that wait for events of this one; `synchronize`
    tells it and makes the stream good again.
    """

    def enqueue(self, work: Work) -> None:
        """Do this after all that was enqueued before."""

    def record(self) -> Event:
        """An event behind all that was enqueued before."""

    def mark(self) -> Mark:
        """The moment behind all that was enqueued before, to measure times with."""

    def wait(self, event: Event) -> None:
        """Let what is enqueued from now on come after an event of any stream."""

    def synchronize(self) -> None:
        """Let the calling thread wait until all is done; raises the first error."""

    def abandon(self) -> None:
        """Skip what has not begun, wait for what has, and forget errors."""

    def close(self) -> None:
        """Finish what was enqueued, and take no more. Nothing happens in a forked process."""


class _Done:
    """The event of a stream that does everything at once."""

    error: BaseException | None = None
    done = True

    def block(self) -> None:
        """It has been."""


_DONE = _Done()


class Inline:
    """Does everything at once in the calling thread: no way to a device is shorter."""

    def enqueue(self, work: Work) -> None:
        """Do it."""
        work()

    def record(self) -> Event:
        """An event that has been."""
        return _DONE

    def mark(self) -> Moment:
        """Now."""
        return Moment(time.perf_counter())

    def wait(self, event: Event) -> None:
        """Wait; raises the error of the other stream."""
        event.block()
        if event.error:
            raise event.error

    def synchronize(self) -> None:
        """All is done."""

    def abandon(self) -> None:
        """Nothing is left."""

    def close(self) -> None:
        """Nothing is left."""


INLINE = Inline()
"""One is enough: it has nothing of its own."""


class ThreadEvent:
    """An event of a stream that has a thread of its own; `finish` is called once.

    A bare lock: threading.Event has one too, and takes several times as long to make, set and wait for.
    """

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.done = False
        self._gate = threading.Lock()
        self._gate.acquire()

    def finish(self, error: BaseException | None) -> None:
        """The stream has come there."""
        self.error, self.done = error, True
        self._gate.release()

    def block(self) -> None:
        """Wait until the stream has come there."""
        if not self.done:
            with self._gate:  # who comes through lets the next one in
                pass


class Attempts:
    """Work that is done until some of it fails."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        """Of the first that failed."""

    def attempt(self, work: Work) -> None:
        """Do it, if nothing has failed."""
        if self.error is None:
            try:
                work()
            except BaseException as error:  # whatever it is, the thread that synchronizes gets it
                self.error = error


class Later:
    """What streams have in common that do their work later. Theirs is `_put`, and what to do of an event."""

    def __init__(self, attempts: Attempts) -> None:
        self._attempts = attempts

    def _put(self, step: Work, awaited: Event | None = None) -> None:
        """Do a step behind all others. awaited: it begins with waiting for this."""
        raise NotImplementedError

    def record(self) -> Event:
        """An event behind all that was enqueued before."""
        raise NotImplementedError

    def enqueue(self, work: Work) -> None:
        """Do it behind all that was enqueued before."""
        self._put(lambda: self._attempts.attempt(work))

    def mark(self) -> Moment:
        """When the stream comes here."""
        moment = Moment()

        def arrive() -> None:
            moment.time = time.perf_counter()

        self._put(arrive)
        return moment

    def wait(self, event: Event) -> None:
        """Let what is enqueued from now on come after an event of any stream."""

        def wait() -> None:
            event.block()
            if event.error:
                raise event.error

        self._put(lambda: self._attempts.attempt(wait), event)

    def synchronize(self) -> None:
        """Wait until all is done; raises the first error."""
        self.record().block()
        error, self._attempts.error = self._attempts.error, None
        if error:
            raise error

    def abandon(self) -> None:
        """Skip what has not begun, wait for what has, and forget errors."""
        self._attempts.error = self._attempts.error or GgrunError("the computation was given up")
        self.record().block()
        self._attempts.error = None


class Threaded(Later):
    """Does the work in a thread of its own, so that several devices work at once."""

    def __init__(self, name: str) -> None:
        self._lock, self._closed = ProcessLock(), False
        self._worker = _Worker()
        super().__init__(self._worker)
        self._thread = threading.Thread(target=self._worker.run, daemon=True, name=f"ggrun-{name}")
        try:
            self._thread.start()
        except RuntimeError:
            raise GgrunError(f"{name}: the system has no room for another thread") from None
        finalize(self, self._worker.queue.put, None).atexit = False

    def record(self) -> ThreadEvent:
        """An event behind all that was enqueued before."""
        event = ThreadEvent()
        self._put(lambda: event.finish(self._worker.error))
        return event

    def close(self) -> None:
        """End the thread when it has done what was enqueued."""
        if self._lock.foreign:
            return
        with self._lock.here():
            if not self._closed:
                self._closed = True
                self._worker.queue.put(None)
        self._thread.join()

    def _put(self, step: Work, awaited: Event | None = None) -> None:
        with self._lock.here():
            if self._closed:
                raise GgrunError("the model is closed")
            self._worker.queue.put(step)


class _Worker(Attempts):
    """What the thread has. Apart from Threaded, so that the thread does not keep it alive."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: SimpleQueue[Work | None] = SimpleQueue()

    def run(self) -> None:
        while step := self.queue.get():
            step()
            del step  # what it holds, now and not when the next one comes
