"""A stream of a card, and its events."""

from contextlib import suppress
from typing import Any

from ggrun.devices.cuda.card_errors import CardErrors, cuda_errors
from ggrun.devices.cuda.downloads import Downloads
from ggrun.devices.streams import Attempts, Event, Work
from ggrun.errors import GgrunError


class Capture:
    """A graph that is being recorded, and its streams. early: whether kernels may begin early in it."""

    def __init__(self, early: bool) -> None:
        self.early = early
        self.streams: list[CudaStream] = []


class CudaEvent:
    """A place in a stream of a card. Errors show where the host waits: cards tell them no earlier.

    capture    what it is a part of: then streams alone may wait for it
    """

    def __init__(self, raw: Any, errors: CardErrors, attempts: Attempts, downloads: Downloads) -> None:
        self.raw, self._errors, self._attempts = raw, errors, attempts
        self._downloads, self._begun = downloads, downloads.begun
        self.capture: Capture | None = None

    @property
    def error(self) -> BaseException | None:
        """The stream's: of the host's work, or of what else it was told."""
        return self._attempts.error

    @property
    def done(self) -> bool:
        """Whether the stream has come there."""
        if not self.raw.done:
            return False
        self._downloads.land(self._begun)
        return True

    def block(self) -> None:
        """Let the calling thread sleep until the stream has come there."""
        with self._errors:
            self.raw.synchronize()
        self._downloads.land(self._begun)


class CudaMark:
    """A moment by the card's own clock, which plain events go without, to be cheaper."""

    def __init__(self, cupy: Any, raw: Any, errors: CardErrors) -> None:
        self._cupy, self._raw, self._errors = cupy, raw, errors

    def since(self, earlier: "CudaMark") -> float:
        """The seconds from an earlier one."""
        with self._errors:
            return float(self._cupy.cuda.get_elapsed_time(earlier._raw, self._raw)) / 1e3


class CudaStream:
    """See Stream: what is launched while `raw` is current goes here. device: the card's number.

    capture          the graph that all of it goes into now
    behind_kernel    whether a kernel is all that the next one comes after
    downloads        what comes to the host
    """

    def __init__(self, cupy: Any, errors: CardErrors, device: int) -> None:
        self._cupy, self._device, self._closed, self._errors = cupy, device, False, errors
        self.raw = cupy.cuda.Stream(non_blocking=True)
        self.capture: Capture | None = None
        self.behind_kernel = False
        self.downloads = Downloads(errors)
        self._given = self.rested = 0
        self._attempts = Attempts()

    def enqueue(self, work: Work) -> None:
        """Host's work, done by a thread of the driver's: it must not call CUDA."""
        self._open()
        begun = self.downloads.begun

        def attempt(_: object) -> None:
            self.downloads.land(begun)
            self._attempts.attempt(work)

        with self._errors:
            self.raw.launch_host_func(attempt, None)

    def ticket(self) -> int:
        """See CardStream."""
        self._given += 1
        return self._given

    def record(self) -> CudaEvent:
        """An event behind all that was enqueued before."""
        event = CudaEvent(self._recorded(timed=False), self._errors, self._attempts, self.downloads)
        event.capture = self.capture
        return event

    def mark(self) -> CudaMark:
        """An event that has a time."""
        return CudaMark(self._cupy, self._recorded(timed=True), self._errors)

    def wait(self, event: Event) -> None:
        """Of another card's event, without the host; for another kind of device, the host waits."""
        self._open()
        self.behind_kernel = False
        if isinstance(event, CudaEvent):
            with self._errors:
                self.raw.wait_event(event.raw)
            if event.capture and not self.capture:
                self._join(event.capture)
            return
        event.block()
        if event.error:
            raise event.error

    def begin_capture(self, early: bool) -> None:
        """What is enqueued from now on is noted for a graph; so is that of streams that wait for it."""
        self._join(Capture(early))  # first: whatever comes in between, `end_capture` ends it
        self.behind_kernel = False
        self.raw.begin_capture()

    def end_capture(self) -> Any:
        """CuPy's graph of all that was noted. Streams take work again, even when CuPy raises an error."""
        for stream in self.capture.streams if self.capture else ():
            stream.capture, stream.behind_kernel = None, False
        return self.raw.end_capture()

    def fail(self, error: Exception) -> None:
        """Let `synchronize` raise an error, unless it has another one; from any thread."""
        self._attempts.error = self._attempts.error or error

    def synchronize(self) -> None:
        """Wait until all is done; raises the first error."""
        given, begun = self._given, self.downloads.begun  # other threads may go on enqueuing
        with self._errors:
            self.raw.synchronize()
        self.rested = max(self.rested, given)
        self.downloads.land(begun)
        error, self._attempts.error = self._attempts.error, None
        if error:
            raise error

    def abandon(self) -> None:
        """Wait for what was enqueued, which a card cannot skip, and forget errors."""
        try:
            self.synchronize()
        except Exception:  # whatever it was, it has been told
            self._attempts.error = None

    def close(self) -> None:
        """Finish what was enqueued, and take no more. A card that has failed has told it before."""
        if not self._closed:
            self._closed = True
            with suppress(*cuda_errors(self._cupy)):
                self.raw.synchronize()

    def _join(self, capture: Capture) -> None:
        self.capture = capture
        capture.streams.append(self)

    def _recorded(self, timed: bool) -> Any:
        """CuPy's event behind all that was enqueued before."""
        self._open()
        with self._errors, self._cupy.cuda.Device(self._device):
            event = self._cupy.cuda.Event(block=True, disable_timing=not timed)
            event.record(self.raw)
        return event

    def _open(self) -> None:
        if self._closed:
            raise GgrunError("the model is closed")
