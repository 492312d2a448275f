"""Loading on a worker: says what to load, and sends the weights that it has not."""

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from ggrun.devices.base import Limits
from ggrun.devices.progress import Progress
from ggrun.engine.hosts import HostLost
from ggrun.engine.runner import CacheSpec
from ggrun.gguf import GGUF, Tensor
from ggrun.plan import Plan
from ggrun.plan.facts import PAGE, ModelFacts
from ggrun.rpc import ggrun_pb2 as pb
from ggrun.rpc.hashes import hashes
from ggrun.rpc.link import Link
from ggrun.rpc.opening import opening, wanted
from ggrun.rpc.wire import SMALL, ProtocolError, Room, check_tokens

CHUNK = 1 << 20
"""Bytes of a message with weights."""
PATIENCE = 1800.0
"""Seconds that the worker has for a sign that loading goes on: it may have to hash files of its own."""
_WINDOW = 32 << 20
"""Bytes under way: chunks follow each other without waiting for the worker's word on each."""
_WANT, _BESIDE_NAME = 20, 4
"""The most bytes that a worker needs to want a tensor, or to name it."""


class Upload:
    """One load. `begin` starts a thread, `finish` waits for it."""

    def __init__(self, link: Link, progress: Progress) -> None:
        self._link, self._progress = link, progress
        self.width = self.vocab = self.sent = 0
        self._changed = threading.Condition()
        self._tensors: list[Tensor] = []  # the model's
        self._wants: deque[pb.Want] = deque()  # that are to be answered
        self._asked: dict[int, int] = {}  # all wants so far: where each tensor's begin
        self._total = 0  # bytes of them
        self._ready: Any = None
        self._received, self._heard = 0, time.monotonic()
        self._error: BaseException | None = None
        link.on_end(self._lost)
        link.on_beat(self._check)

    def begin(
        self, plan: Plan, parts: Sequence[range], model: GGUF, cache: CacheSpec, limits: Limits, slots: int,
        form: "pb.Form",
    ) -> None:  # fmt: skip
        """Start to load runs of stages; UsageError where batches are too large for messages."""
        facts = ModelFacts.from_outline(model)
        self.width, self.vocab = facts.config.width, facts.config.vocab
        check_tokens(limits.tokens, self.width, form)
        self._tensors = list(model.tensors.values())
        names = wanted(facts, plan, [i for part in parts for i in part]) & model.tensors.keys()
        self._link.on("missing", self._on_missing, Room(_WANT * len(model.tensors) + SMALL.nbytes))
        self._link.on("received", self._on_received)
        texts = sum(len(name.encode()) + _BESIDE_NAME for name in model.tensors)
        self._link.on("ready", self._on_ready, Room(texts + SMALL.nbytes))

        def load() -> None:
            try:
                digests = hashes(model, sorted(names), self._progress)
                n_ctx = limits.pages * PAGE
                message = opening(
                    self._link.host, plan, parts, model, digests, cache, limits, n_ctx, slots, form
                )
                self._link.send(open=message)
                self._transfer()
            except BaseException as error:  # whatever it is, `finish` raises it
                self._lost(error)

        threading.Thread(target=load, daemon=True, name=f"ggrun-{self._link.host}-load").start()

    def finish(self) -> set[str]:
        """Wait until the worker is ready: the names of the tensors that it uses."""
        self._wait(lambda: self._ready is not None)
        return set(self._ready.tensors)

    def _transfer(self) -> None:
        what = f"sending weights to {self._link.host}"
        while (want := self._next()) is not None:
            for chunk in self._chunks(want):
                self._wait(lambda: self.sent - self._received < _WINDOW)
                self._link.send(chunk=chunk)
                self.sent += len(chunk.data)
                self._progress(what, self._received, self._total)
        if self._total:
            self._progress(what, self._total, self._total)

    def _next(self) -> "pb.Want | None":
        """What the worker wants now; None when it is ready."""
        self._wait(lambda: self._wants or self._ready is not None)
        return self._wants.popleft() if self._wants else None

    def _chunks(self, want: "pb.Want") -> Iterator["pb.Chunk"]:
        data = self._tensors[want.tensor].data
        for begin in range(want.offset, len(data), CHUNK):
            yield pb.Chunk(tensor=want.tensor, offset=begin, data=data[begin : begin + CHUNK].tobytes())

    def _wait(self, there: Any) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._error is not None or there())
            if self._error:
                raise self._error

    def _on_missing(self, missing: "pb.Missing") -> None:
        left = sum(self._asked_for(want) for want in missing.wants)
        with self._changed:
            self._wants.extend(missing.wants)
            self._tell("_total", self._total + left)

    def _asked_for(self, want: "pb.Want") -> int:
        """The bytes of a want; ProtocolError for one that cannot be."""
        i, offset = want.tensor, int(want.offset)
        if i >= len(self._tensors) or offset >= self._tensors[i].nbytes:
            raise ProtocolError(f"{self._link.host}: the worker wants a tensor that there is not")
        # What it had of a tensor may prove wrong: it then wants all of it, once.
        if i in self._asked and not self._asked[i] > offset == 0:
            raise ProtocolError(f"{self._link.host}: the worker asks for weights twice")
        self._asked[i] = offset
        return self._tensors[i].nbytes - offset

    def _on_received(self, received: "pb.Received") -> None:
        if not self._received <= received.bytes <= self.sent + CHUNK:
            raise ProtocolError(f"{self._link.host}: the worker has received what was not sent")
        self._tell("_received", received.bytes)

    def _on_ready(self, ready: "pb.Ready") -> None:
        self._link.in_use = True
        self._tell("_ready", ready)

    def _check(self) -> None:
        if self._ready is None and time.monotonic() - self._heard > PATIENCE:
            raise HostLost(self._link.host, f"the worker has loaded nothing for {PATIENCE:.0f} seconds")

    def _lost(self, error: BaseException) -> None:
        self._tell("_error", self._error or error)

    def _tell(self, name: str, value: Any) -> None:
        with self._changed:
            setattr(self, name, value)
            self._heard = time.monotonic()
            self._changed.notify_all()
