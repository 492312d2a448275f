"""Streams, events and graphs of fake_cupy: all is done at once, or noted while a graph is captured."""

import ctypes
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.cuda.fake_cupy import FakeCupy


class CUDARuntimeError(RuntimeError):
    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Capture:
    """What streams that wait for each other are given while a graph is captured."""

    def __init__(self, origin: "Stream") -> None:
        self.origin, self.open = origin, True
        self.works: list[Callable[[], None]] = []
        self._known: dict[object, dict[Stream, int]] = {}
        """How much of each stream's work is behind a stream, or an event."""

    def add(self, stream: "Stream", work: Callable[[], None]) -> None:
        self.works.append(work)
        known = self._known.setdefault(stream, {})
        known[stream] = known.get(stream, 0) + 1

    def record(self, stream: "Stream", event: "Event") -> None:
        self._known[event] = dict(self._known.get(stream, {}))

    def wait(self, stream: "Stream", event: "Event") -> None:
        known = self._known.setdefault(stream, {})
        for other, much in self._known[event].items():
            known[other] = max(known.get(other, 0), much)

    def is_joined(self) -> bool:
        """Whether the first stream has waited for all that others do."""
        seen = self._known.get(self.origin, {})
        return all(seen.get(s, 0) == self._known[s].get(s, 0) for s in self.streams())

    def streams(self) -> list["Stream"]:
        """All that were given work."""
        return [stream for stream in self._known if isinstance(stream, Stream)]


class Event:
    def __init__(self, cuda: "FakeCupy", block: bool, disable_timing: bool) -> None:
        assert block
        self._card = cuda.devices[-1]
        self.timed, self.time = not disable_timing, 0.0
        self._held: threading.Event | None = None
        self.captured: Capture | None = None
        self._coming: list[Coming] = []

    @property
    def done(self) -> bool:
        assert not self.captured
        if self._held and not self._held.is_set():
            return False
        self._arrive()
        return True

    def record(self, stream: "Stream") -> None:
        assert stream.card == self._card
        self.captured = stream.captured
        if self.captured:
            self.captured.record(stream, self)
        self._held, self.time = stream.held, time.perf_counter()
        self._coming = list(stream.coming)

    def synchronize(self) -> None:
        assert not self.captured
        if self._held:
            self._held.wait()
        self._arrive()

    def _arrive(self) -> None:
        for coming in self._coming:
            coming.arrive()


class Coming:
    """A copy to pinned memory: until somebody has waited for it, something else is there."""

    def __init__(self, target: int, source: int, nbytes: int) -> None:
        self._target, self._bytes = target, ctypes.string_at(source, nbytes)
        self._lock, self.arrived = threading.Lock(), False
        ctypes.memset(target, 0xA5, nbytes)

    def arrive(self) -> None:
        """Once: what is there later may be another one's."""
        with self._lock:
            if not self.arrived:
                ctypes.memmove(self._target, self._bytes, len(self._bytes))
            self.arrived = True


class Stream:
    def __init__(self, cuda: "FakeCupy", non_blocking: bool) -> None:
        assert non_blocking
        self._cuda, self.card = cuda, cuda.devices[-1]
        self.ptr = 7 + len(cuda.made)
        cuda.made[self.ptr] = self
        self.held: threading.Event | None = None
        self.captured: Capture | None = None
        self.landing: list[Callable[[], None]] = []
        self.coming: list[Coming] = []
        self.last = ""
        """What the next kernel comes after: "kernel", or something else."""

    def __enter__(self) -> "Stream":
        assert self._cuda.devices[-1] == self.card
        self._cuda.streams.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._cuda.streams.pop() is self

    def do(self, work: Callable[[], None], what: str = "copy") -> None:
        self._land()
        self.last = what
        if self.captured is None:
            work()
        else:
            self.captured.add(self, work)

    def launch_host_func(self, function: Callable[[Any], None], arg: Any) -> None:
        coming = list(self.coming)

        def work() -> None:
            for each in coming:
                each.arrive()
            function(arg)

        if self.held:
            self.landing.append(work)
        else:
            work()

    def bring(self, target: int, source: int, nbytes: int) -> None:
        assert not self.captured
        self.coming = [coming for coming in self.coming if not coming.arrived]
        self.coming.append(Coming(target, source, nbytes))

    def _arrive(self) -> None:
        for coming in self.coming:
            coming.arrive()
        self.coming = []

    def wait_event(self, event: Event) -> None:
        assert isinstance(event, Event)
        self.last = "event"
        if event.captured != self.captured:
            if self.captured or not event.captured or not event.captured.open:
                raise CUDARuntimeError(905, "cudaErrorStreamCaptureIsolation")
            self.captured = event.captured
        if self.captured:
            self.captured.wait(self, event)

    def synchronize(self) -> None:
        assert not self.captured
        if self.held:
            self.held.wait()
            self.held = None
        self._land()
        self._arrive()

    def _land(self) -> None:
        while self.landing:
            self.landing.pop(0)()

    def begin_capture(self) -> None:
        assert not self.captured
        self.captured, self.last = Capture(self), "beginning"

    def end_capture(self) -> Any:
        ended = self.captured
        assert ended
        assert ended.origin is self
        for stream in self._cuda.made.values():
            if stream.captured is ended:
                stream.captured = None
        ended.open = False
        self._cuda._fail("end_capture")
        if not ended.is_joined():
            raise CUDARuntimeError(904, "cudaErrorStreamCaptureUnjoined")

        def launch(stream: "Stream") -> None:
            assert stream is self
            assert not stream.captured
            self._cuda.launched.append(ended)
            for work in ended.works:
                work()

        return SimpleNamespace(launch=launch)
