"""Streams of emulated devices: work is done as late as it may be, in an order drawn from a seed.

A stream that does not wait for an event runs ahead of, or behind, the other streams for some seed, and then
computes with memory that is not yet, or no longer, what it should be. Time is virtual: each piece of work
has a cost, and a stream's clock is what it would show on a device that does nothing else.
"""

import random
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from ggrun.devices.streams import Event, Work
from ggrun.errors import GgrunError

_LOYALTY = 0.9
"""How probably the stream that ran last runs on: short turns would never let one run far ahead."""
_NAP = 0.001
"""Seconds between two looks at an event of another kind of stream."""


class Schedule:
    """Chooses which of its streams runs next, and has the host's clock."""

    def __init__(self, seed: int = 0) -> None:
        self.now = 0.0
        self.streams: list[Late] = []
        self._random = random.Random(seed)
        self._last: Late | None = None
        self.lock = threading.Condition()

    def run_until(self, done: Callable[[], bool]) -> None:
        """Do work of any streams until `done`; from any thread."""
        with self.lock:
            while not done():
                if ready := [stream for stream in self.streams if stream.ready]:
                    self._choose(ready).step()
                else:  # all wait for a stream of another kind, or for one that another thread runs
                    self.lock.wait(_NAP)

    def _choose(self, ready: list["Late"]) -> "Late":
        if self._last not in ready or self._random.random() > _LOYALTY:
            self._last = self._random.choice(ready)
        assert self._last is not None
        return self._last


class LateEvent:
    """An event of a late stream; `time` is when it was by the stream's clock."""

    def __init__(self, schedule: Schedule) -> None:
        self.error: BaseException | None = None
        self.done, self.time, self._schedule = False, 0.0, schedule

    def block(self) -> None:
        """Run the streams until this one has come there."""
        self._schedule.run_until(lambda: self.done)

    def since(self, earlier: "LateEvent") -> float:
        """The virtual time from an earlier event of the same stream to this one."""
        return self.time - earlier.time


@dataclass(frozen=True)
class Step:
    """What a stream does at a time: work, or an event to wait for or to pass."""

    enqueued: float
    cost: float = 0.0
    work: Work | None = None
    awaited: Event | None = None
    passed: LateEvent | None = None


class Late:
    """A stream of a schedule."""

    def __init__(self, schedule: Schedule) -> None:
        self.time = 0.0
        self.schedule, self._closed = schedule, False
        self._queue: deque[Step] = deque()
        self._error: BaseException | None = None
        self._beside: list[Self] = []
        schedule.streams.append(self)

    def beside(self) -> Self:
        """Another stream of the same device, which is abandoned and closed with this one."""
        self._beside.append(type(self)(self.schedule))
        return self._beside[-1]

    def enqueue(self, work: Work, cost: float = 0.0) -> None:
        """Do it some time; it takes `cost` of virtual time."""
        self._put(Step(self.schedule.now, cost, work=work))

    def record(self) -> LateEvent:
        """An event behind all that was enqueued before."""
        event = LateEvent(self.schedule)
        self._put(Step(self.schedule.now, passed=event))
        return event

    def mark(self) -> LateEvent:
        """An event has a time."""
        return self.record()

    def wait(self, event: Event) -> None:
        """Let what is enqueued from now on come after an event."""
        self._put(Step(self.schedule.now, awaited=event))

    def synchronize(self) -> None:
        """Run the streams until this one has nothing left; raises its first error."""
        self.schedule.run_until(lambda: not self._queue)
        self.schedule.now = max(self.schedule.now, self.time)
        error, self._error = self._error, None
        if error:
            raise error

    def abandon(self) -> None:
        """Skip what is left, and forget errors."""
        with self.schedule.lock:  # after an error nothing waits: the other streams need not run
            self._error = self._error or GgrunError("the computation was given up")
            while self._queue:
                self.step()
            self._error = None
        for stream in self._beside:
            stream.abandon()

    def close(self) -> None:
        """Do what is left, and take no more."""
        for stream in self._beside:
            stream.close()
        self.schedule.run_until(lambda: not self._queue)
        self._closed = True

    @property
    def ready(self) -> bool:
        """Whether the first step can be done now."""
        if not self._queue:
            return False
        event = self._queue[0].awaited
        return self._error is not None or event is None or event.done

    def step(self) -> None:
        """Do the first step."""
        step = self._queue[0]
        self.time = max(self.time, step.enqueued)
        if step.awaited and self._error is None:
            self._error = step.awaited.error
            self.time = max(self.time, getattr(step.awaited, "time", 0.0))
        if step.work and self._error is None:
            self.time += step.cost
            try:
                step.work()
            except BaseException as error:  # whatever it is, the thread that synchronizes gets it
                self._error = error
        if step.passed:
            step.passed.done, step.passed.time, step.passed.error = True, self.time, self._error
        self._queue.popleft()

    def _put(self, step: Step) -> None:
        if self._closed:
            raise GgrunError("the model is closed")
        self._queue.append(step)
