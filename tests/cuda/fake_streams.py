"""Streams, events and graphs of fake_cupy: most is done at once, or noted while a graph is captured."""

import ctypes
import threading
import time
from collections.abc import Callable
from functools import partial
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
        self.works: list[Callable[[], object]] = []
        self._known: dict[object, dict[Stream, int]] = {}
        """How much of each stream's work is behind a stream, or an event."""

    def add(self, stream: "Stream", work: Callable[[], object]) -> None:
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
        self._late: list[Late] = []
        self._coming: list[Late] = []

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
        self._late, self._coming = list(stream.late), list(stream.coming)

    def synchronize(self) -> None:
        assert not self.captured
        if self._held:
            self._held.wait()
        self._arrive()

    def land(self) -> None:
        """Do what a stream that waits for it must find done."""
        for late in self._late:
            late.do()

    def _arrive(self) -> None:
        self.land()
        for coming in self._coming:
            coming.do()


class Late:
    """Work that is done when somebody waits for it: once, as others may use later what it touches."""

    def __init__(self, work: Callable[[], object]) -> None:
        self._work, self._lock, self.done = work, threading.Lock(), False

    def do(self) -> None:
        with self._lock:
            if not self.done:
                self._work()
            self.done = True


class Stream:
    def __init__(self, cuda: "FakeCupy", non_blocking: bool) -> None:
        assert non_blocking
        self._cuda, self.card = cuda, cuda.devices[-1]
        self.ptr = 7 + len(cuda.made)
        cuda.made[self.ptr] = self
        self.held: threading.Event | None = None
        self.captured: Capture | None = None
        self.late: list[Late] = []
        """What the next work finds done."""
        self.coming: list[Late] = []
        """What the host alone waits for."""
        self._lock = threading.RLock()
        self.last = ""
        """What the next kernel comes after: "kernel", or something else."""

    def __enter__(self) -> "Stream":
        assert self._cuda.devices[-1] == self.card
        self._cuda.streams.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._cuda.streams.pop() is self

    def do(self, work: Callable[[], object], what: str = "copy") -> None:
        self.land()
        self.last = what
        if self.captured is None:
            work()
        else:
            self.captured.add(self, work)

    def do_late(self, work: Callable[[], object]) -> None:
        """At the next work, or when it is waited for."""
        if self.captured is not None:
            self.do(work)
            return
        self.last = "copy"
        with self._lock:
            self.late = [late for late in self.late if not late.done]
            self.late.append(Late(work))

    def launch_host_func(self, function: Callable[[Any], None], arg: Any) -> None:
        coming = list(self.coming)

        def work() -> None:
            for each in coming:
                each.do()
            function(arg)

        self.land()
        if self.held:
            self.coming.append(Late(work))
        else:
            work()

    def bring(self, target: int, source: int, nbytes: int) -> None:
        """Copy to pinned memory: until the host has waited for it, something else is there."""
        assert not self.captured
        self.land()
        self.coming = [coming for coming in self.coming if not coming.done]
        self.coming.append(Late(partial(ctypes.memmove, target, ctypes.string_at(source, nbytes), nbytes)))
        ctypes.memset(target, 0xA5, nbytes)

    def wait_event(self, event: Event) -> None:
        assert isinstance(event, Event)
        self.last = "event"
        event.land()
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
        self.land()
        for coming in self.coming:
            coming.do()
        self.coming = []

    def land(self) -> None:
        with self._lock:
            for late in self.late:
                late.do()
            self.late = []

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
            stream.land()
            self._cuda.launched.append(ended)
            for work in ended.works:
                work()

        return SimpleNamespace(launch=launch)
