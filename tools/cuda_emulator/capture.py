"""Graphs of emulated cards: what streams are given is noted, and enqueued later as often as one likes.

The rules are CUDA's. A stream takes part in a capture from when it waits for an event of it; nothing inside
waits for an event of outside, nor the other way; at the end, the stream that began it has waited for all
others. A graph is ordered with the work of that one stream alone.
"""

from collections import Counter, defaultdict
from weakref import WeakKeyDictionary

from ggrun.devices.late import Late, LateEvent, Step
from tools.cuda_emulator.kernels import KernelError

_captures: "WeakKeyDictionary[LateEvent, Capture]" = WeakKeyDictionary()
"""Where events were recorded that are in a capture."""


class Capture:
    """What streams are given, in the order in which it came, while `open`."""

    def __init__(self) -> None:
        self.steps: list[tuple[CardStream, Step]] = []
        self.open = True
        # How many steps of each stream are before a stream's next one, or before an event.
        self._known = defaultdict[object, Counter[CardStream]](Counter)

    def add(self, stream: "CardStream", step: Step) -> None:
        """Note a step, and whose steps are before it."""
        known = self._known[stream]
        if isinstance(step.awaited, LateEvent):
            known |= self._known[step.awaited]
        known[stream] += 1
        if step.passed:
            self._known[step.passed] = known.copy()
            _captures[step.passed] = self
        self.steps.append((stream, step))

    def end(self, origin: "CardStream") -> None:
        """KernelError where a stream does what nobody waits for."""
        self.open = False
        streams = {origin, *(stream for stream, _ in self.steps)}
        for stream in streams:
            stream.capture = None
        behind = self._known[origin]
        if any(behind[stream] < self._known[stream][stream] for stream in streams):
            raise KernelError("a capture ends, and not all streams that are in it were waited for")


class CardStream(Late):
    """A stream of an emulated card."""

    capture: Capture | None = None
    """Where all goes that is enqueued now."""
    rested = given = 0
    """The newest ticket that the host has waited for, and the newest of all."""

    def begin_capture(self) -> None:
        """Note what is enqueued from now on."""
        self.capture = Capture()

    def end_capture(self) -> "StreamGraph":
        """What was noted."""
        assert self.capture
        capture = self.capture
        capture.end(self)
        return StreamGraph(self, capture)

    def synchronize(self) -> None:
        """See Stream."""
        if self.capture:
            raise KernelError("the host waits for a stream that is being captured")
        given = self.given
        super().synchronize()
        self.rested = max(self.rested, given)

    def ticket(self) -> int:
        """See CardStream."""
        self.given += 1
        return self.given

    def _put(self, step: Step) -> None:
        before = _captures.get(step.awaited) if isinstance(step.awaited, LateEvent) else None
        if before and not before.open:
            raise KernelError("a stream waits for an event of a graph")
        if step.awaited and self.capture and before is not self.capture:
            raise KernelError("a stream that is being captured waits for an event of outside")
        self.capture = self.capture or before
        if self.capture:
            self.capture.add(self, step)
        else:
            super()._put(step)


class StreamGraph:
    """A graph, which runs in streams of its own. They stay in the schedule: for tests that is no matter."""

    def __init__(self, origin: CardStream, capture: Capture) -> None:
        self._origin, self._steps = origin, capture.steps
        self._works = max(1, sum(step.work is not None for _, step in self._steps))
        self._twins = {stream: stream.beside() for stream, _ in self._steps}

    def launch(self, cost: float) -> None:
        """Enqueue all of it, in the stream that began the capture. cost: of the whole, of virtual time."""
        begin, events = self._origin.record(), dict[LateEvent, LateEvent]()
        for twin in self._twins.values():
            twin.wait(begin)
        for stream, step in self._steps:
            twin = self._twins[stream]
            if step.passed:
                events[step.passed] = twin.record()
            elif isinstance(step.awaited, LateEvent):
                twin.wait(events[step.awaited])
            elif step.work:
                twin.enqueue(step.work, cost / self._works)
        for twin in self._twins.values():
            self._origin.wait(twin.record())
