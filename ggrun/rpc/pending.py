"""Batches that are under way to a worker and back."""

import math
import threading
import time
from itertools import count

import numpy as np
from numpy.typing import NDArray

from ggrun.devices.best import TopK
from ggrun.devices.streams import ThreadEvent
from ggrun.errors import GgrunError
from ggrun.rpc import ggrun_pb2 as pb
from ggrun.rpc.wire import decode, ids

_NO_VALUES, _NO_IDS = np.empty((0, 0), np.float32), np.empty((0, 0), np.int32)


class Pending:
    """A batch that is under way; what it gives comes in the thread that reads.

    top    where only the best logits come
    """

    def __init__(self, rows: int, width: int, form: "pb.Form", top: TopK | None = None) -> None:
        self.rows, self.width, self.form, self.top = rows, width, form, top
        self.event, self.since = ThreadEvent(), math.inf
        self.values: NDArray[np.float32] = _NO_VALUES
        self.ids: NDArray[np.int32] = _NO_IDS
        self._first = threading.Lock()  # held by the first word

    def sent(self) -> None:
        """From now on the worker can do it."""
        self.since = time.monotonic()

    def take(self, result: "pb.Result", vocab: int) -> None:
        """Check and keep it; ProtocolError."""
        values = decode(result.values, self.form, self.rows, self.width)
        if self.top:
            self.ids = ids(result.ids, values, min(vocab, self.top.words))
        self.values = values

    def finish(self, error: BaseException | None) -> None:
        """It has come, or never will; the first word counts."""
        if self._first.acquire(blocking=False):
            self.event.finish(error)


class Batches:
    """Those of one worker. An error ends a run: what comes of an older one is dropped."""

    def __init__(self) -> None:
        self.run = 1
        self._pending: dict[int, Pending] = {}
        self._broken: GgrunError | None = None  # why nothing more comes of this run
        self._ended: GgrunError | None = None  # or of any
        self._heard = -math.inf
        self._numbers, self._lock = count(1), threading.RLock()  # an interrupt may come in a signal's handler

    def number(self) -> int:
        """A new batch's."""
        return next(self._numbers)

    def expect(self, number: int, pending: Pending) -> None:
        """Tell a batch what comes of it, and what goes wrong."""
        with self._lock:
            self._drop_done()
            self._pending[number] = pending
            error = self._ended or self._broken
        if error:
            pending.finish(error)

    def take(self, result: "pb.Result", vocab: int) -> bool:
        """Give a result to its batch; whether it was waited for, or may come late. ProtocolError."""
        with self._lock:
            if result.run != self.run or self._broken:
                return True
            pending, self._heard = self._pending.pop(result.batch, None), time.monotonic()
        if pending is None:
            return False
        pending.take(result, vocab)
        pending.finish(None)
        return True

    def fail(self, error: GgrunError, run: int) -> None:
        """All of a run ends with an error, what is sent later too."""
        with self._lock:
            if run != self.run:
                return
            pending, self._broken = list(self._pending.values()), error
        for one in pending:
            one.finish(error)

    def begin_run(self, broken: GgrunError | None = None) -> None:
        """Give up what is under way; broken: why nothing comes of what follows."""
        with self._lock:
            self.run += 1
            pending, self._pending, self._broken = list(self._pending.values()), {}, broken
        for one in pending:
            one.finish(GgrunError("the computation was given up"))

    def end(self, error: GgrunError) -> None:
        """Nothing comes any more."""
        with self._lock:
            pending, self._pending, self._ended = list(self._pending.values()), {}, error
        for one in pending:
            one.finish(error)

    def silent(self) -> float:
        """Seconds for which the worker has given nothing, of what it could do."""
        with self._lock:
            self._drop_done()
            since = min((one.since for one in self._pending.values()), default=math.inf)
            return time.monotonic() - max(since, self._heard)

    def largest(self) -> int | None:
        """Bytes of the largest result that is to come; None: none is."""
        with self._lock:
            return max((4 * one.rows * one.width for one in self._pending.values()), default=None)

    def _drop_done(self) -> None:
        """What was pushed to another worker is done when its results come from there."""
        if done := [number for number, one in self._pending.items() if one.event.done]:
            self._heard = time.monotonic()
            for number in done:
                del self._pending[number]
