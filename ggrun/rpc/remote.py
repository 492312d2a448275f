"""A worker as the engine sees it: a Host whose hops compute elsewhere."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggrun.devices.base import Device, Limits, Place
from ggrun.devices.progress import Progress, silent
from ggrun.devices.streams import INLINE, Stream
from ggrun.engine.batch import Batch
from ggrun.engine.hosts import HostLost
from ggrun.engine.outputs import Outputs
from ggrun.engine.runner import CacheSpec
from ggrun.engine.stage import Hop
from ggrun.engine.workspace import Sender
from ggrun.errors import GgrunError, Interrupted
from ggrun.gguf import GGUF
from ggrun.plan import Plan
from ggrun.rpc import ggrun_pb2 as pb
from ggrun.rpc.channel import ACROSS
from ggrun.rpc.link import Link
from ggrun.rpc.offered import devices_of
from ggrun.rpc.on_demand import OnDemand
from ggrun.rpc.pending import Batches, Pending
from ggrun.rpc.upload import CHUNK, Upload
from ggrun.rpc.wire import ProtocolError, activation_bytes, encode, forward, result_room, shown

_WAIT = 6 * ACROSS
"""Seconds that a worker has for a word about another one: more than it tries to connect to that."""
PATIENCE = 600.0
"""Seconds that it has for the next result, however often it says that it is there."""


class Coming:
    """A Sender of activations that are still on their way.

    gate      where their batch was sent, when it was its turn
    before    what was pushed to the hop; so it never comes here
    """

    def __init__(
        self, hop: "RemoteHop", number: int, pending: Pending, gate: Stream, before: "Coming | None" = None
    ) -> None:
        self.hop, self.number, self.pending = hop, number, pending
        self.gate, self.before = gate, before

    @property
    def stream(self) -> Stream:
        """Where the hop's results are waited for."""
        return self.hop.stream

    def copy(self, rows: int, device: Device, place: Place) -> None:
        """Write them to a device when they are here."""
        self.stream.enqueue(lambda: device.write(place, self.pending.values))

    def download(self, rows: int, out: NDArray[np.float32]) -> None:
        """Copy them when they are here."""
        self.stream.enqueue(lambda: np.copyto(out, self.pending.values))


class RemoteHop:
    """A part of the plan that a worker computes."""

    def __init__(self, remote: "Remote", part: int, *, first: bool, last: bool) -> None:
        self.stream = OnDemand()
        self.part, self.host = part, remote.name
        self._remote, self._first, self._last = remote, first, last
        self._coming: Coming | None = None
        # A batch waits for the one that was `slots` before it.
        self._under_way: deque[Pending] = deque(maxlen=remote.slots)
        self.pushes_to: RemoteHop | None = None

    def accept(self, senders: Sequence[Sender], batch: Batch, slot: int) -> None:
        """Send a batch on its way, when its activations are there."""
        sender = senders[0]
        if isinstance(sender, Coming) and sender.hop.pushes_to is self:
            self._follow(batch, sender)
            return
        if oldest := self._oldest():
            sender.stream.wait(oldest.event)
        values = np.empty((len(batch.tokens), self._remote.width), np.float32)
        sender.download(len(batch.tokens), values)
        message, pending = self._expect(batch, sender.stream)
        sender.stream.enqueue(partial(self._send, message, pending, values))
        self._wait(pending, sender.stream)

    def run(self, batch: Batch) -> None:
        """The first part begins with tokens; the others when activations have come."""
        if self._first:
            if oldest := self._oldest():
                INLINE.wait(oldest.event)
            message, pending = self._expect(batch, INLINE)
            self._send(message, pending)
            self._wait(pending, INLINE)

    def receive(self, batch: Batch, slot: int) -> None:
        """The worker does."""

    def send(self, batch: Batch, to: Hop, slot: int) -> None:
        """Push the results on as they come."""
        assert self._coming
        to.accept([self._coming], batch, slot)

    def download(self, batch: Batch, outputs: Outputs) -> None:
        """Copy the logits as they come, or the best of them."""
        assert self._coming
        pending = self._coming.pending
        if not batch.top:
            self._coming.download(outputs.rows, outputs.logits)
        elif outputs.rows:
            best = outputs.best(0)
            self.stream.enqueue(lambda: np.copyto(best.logits, pending.values))
            self.stream.enqueue(lambda: np.copyto(best.ids, pending.ids))

    def _follow(self, batch: Batch, pushed: Coming) -> None:
        """Send a batch behind its activations, which go to the worker without a way over here."""
        self.stream.wait(pushed.stream.record())  # an error there is one here
        message, pending = self._expect(batch, pushed.gate, pushed)
        message.pushed = pushed.number
        before: Coming | None = pushed
        while before and self.pushes_to is None:
            before.hop.share(before.number, pending)
            before = before.before
        pushed.gate.enqueue(partial(self._send, message, pending))
        self._wait(pending, pushed.gate)

    def abandon(self) -> None:
        """Begin anew; all that is pending has been ended."""
        self.stream.abandon()
        self._under_way.clear()

    def share(self, number: int, pending: Pending) -> None:
        """A batch that is pushed from here is done when it is there; what goes wrong here is its end."""
        self._under_way.append(pending)
        self._remote.batches.expect(number, pending)

    def _oldest(self) -> Pending | None:
        """What has to be done before another batch may be sent: neither side holds more than a few."""
        return self._under_way[0] if len(self._under_way) == self._under_way.maxlen else None

    def _expect(
        self, batch: Batch, gate: Stream, pushed: Coming | None = None
    ) -> tuple["pb.Forward", Pending]:
        """Its message, and what the batch gives, before anything is sent: the answer may come at once."""
        number = self._remote.batches.number()
        message = forward(batch, self._remote.batches.run, number, self.part, self._first)
        pending = self._remote.expect(self, batch, number, self._last)
        self._coming = Coming(self, number, pending, gate, pushed)
        return message, pending

    def _wait(self, pending: Pending, gate: Stream) -> None:
        self.stream.wait(gate.record())  # an error there is one here
        if self.pushes_to is None:
            self._under_way.append(pending)
            self.stream.wait(pending.event)

    def _send(
        self, message: "pb.Forward", pending: Pending, values: NDArray[np.float32] | None = None
    ) -> None:
        if values is not None:
            message.activations = encode(values, self._remote.form)
        pending.sent()
        self._remote.link.send(forward=message)


class Remote:
    """A worker: its devices, and a Host for those parts of a plan that are on them.

    form    of activations on the wire
    """

    def __init__(self, link: Link, form: "pb.Form", progress: Progress = silent) -> None:
        self.name, self.link, self.form = link.host, link, form
        self.width = self.slots = self._activations = 0
        self.batches = Batches()
        self._progress = progress
        self.latency, self.bandwidth = link.measure()
        self.devices = devices_of(link.host, link.welcome, self.latency, self.bandwidth)
        self._hops: list[RemoteHop] = []
        self._interrupted = False
        self._answers: dict[tuple[str, int], _Answer] = {}
        link.on("failed", self._failed)
        link.on("invited", partial(self._answer, "invited"))
        link.on("handed", partial(self._answer, "handed"))
        link.on_end(self._lost)
        link.on_beat(self._check)

    # ---------------------------------------------------------------- loading: see Host

    def begin(
        self, plan: Plan, parts: Sequence[range], model: GGUF, cache: CacheSpec, limits: Limits, slots: int
    ) -> Sequence[RemoteHop]:
        """Let the worker load runs of stages; does not wait."""
        self._upload = Upload(self.link, self._progress)
        self._vocab = self.width = 0
        self._upload.begin(plan, parts, model, cache, limits, slots, self.form)
        self.width, self._vocab = self._upload.width, self._upload.vocab
        self._activations = 4 * self.width * limits.tokens
        on_wire = activation_bytes(limits.tokens, self.width, self.form)
        self.link.on("result", self._result, result_room(limits, on_wire, self._vocab))
        self.slots, ends = slots, (0, len(plan.stages))
        self._hops = [
            RemoteHop(self, i, first=part.start == ends[0], last=part.stop == ends[1])
            for i, part in enumerate(parts)
        ]
        return self._hops

    def finish(self) -> set[str]:
        """Wait until all is loaded: the names of the tensors that were taken."""
        return self._upload.finish()

    # ---------------------------------------------------------------- running: see Host

    def synchronize(self) -> None:
        """Wait until all that was sent is answered; raises the first error."""
        for hop in self._hops:
            hop.stream.synchronize()

    def abandon(self) -> None:
        """Begin another run; what comes of this one is dropped."""
        self.batches.begin_run(_interrupted() if self._interrupted else None)
        for hop in self._hops:
            hop.abandon()
        with suppress(GgrunError):  # a worker that is lost is at rest
            self.link.send(reset=pb.Reset(run=self.batches.run))

    def interrupt(self) -> None:
        """Make what it computes end with Interrupted, whether it answers or not; from any thread."""
        self._interrupted = True
        with suppress(GgrunError):
            self.link.send(interrupt=pb.Interrupt())
        self.batches.fail(_interrupted(), self.batches.run)

    def resume(self) -> None:
        """Let it compute again."""
        if self._interrupted:
            self._interrupted = False
            self.batches.begin_run()
            with suppress(GgrunError):  # who uses it next learns that it is lost
                self.link.send(reset=pb.Reset(run=self.batches.run, resume=True))

    def leave(self) -> None:
        """Tell the worker that the session ends; `close` waits for that."""
        self.link.leave()

    def close(self) -> None:
        """End the session."""
        self.link.close()
        for hop in self._hops:
            hop.stream.close()

    # ---------------------------------------------------------------- batches under way

    def expect(self, hop: RemoteHop, batch: Batch, number: int, last: bool) -> Pending:
        """Wait for a batch's results."""
        if last:
            width = batch.top.k if batch.top else self._vocab
            pending = Pending(batch.wanted, width, pb.F32, batch.top)
        else:
            pending = Pending(len(batch.tokens), self.width, self.form)
        if hop.pushes_to is None:
            self.batches.expect(number, pending)
        return pending

    def _result(self, result: "pb.Result") -> None:
        if not self.batches.take(result, self._vocab):
            raise ProtocolError(f"{self.name}: the worker sent a result that nobody waits for")

    def _failed(self, failed: "pb.Failed") -> None:
        error: GgrunError = GgrunError(f"{self.name}: {shown(failed.text)}")
        if failed.kind == pb.Failed.INTERRUPTED:
            error = _interrupted()
        if failed.kind == pb.Failed.HANDOFF:
            if failed.part >= len(self._hops) or (to := self._hops[failed.part].pushes_to) is None:
                raise ProtocolError(f"{self.name}: the worker has lost one to which it does not push")
            # Whichever run it was: it is said once, and no batch will go that way.
            self.batches.end(HostLost(to.host, f"the worker is lost to {self.name}"))
            return
        if failed.run == 0:
            raise error
        self.batches.fail(error, failed.run)

    def _check(self) -> None:
        largest = self.batches.largest()
        message = CHUNK if largest is None else max(CHUNK, largest, self._activations)
        # There and back; and networks are not always as fast as when they were measured.
        self.link.busy = 2 * 2 * message / self.bandwidth
        if self.batches.silent() > PATIENCE:
            raise HostLost(self.name, f"the worker has given nothing for {PATIENCE:.0f} seconds")

    def _lost(self, error: GgrunError) -> None:
        self.batches.end(error)
        for answer in list(self._answers.values()):
            answer.come(None)

    # ---------------------------------------------------------------- hand-off

    def invite(self, part: int) -> bytes | None:
        """The key of a part's inbox; None when the worker is lost. HostLost when it says nothing."""
        answer = self._ask("invited", part, lambda: self.link.send(invite=pb.Invite(part=part)))
        return answer.key if answer else None

    def hand_off(self, part: int, to: "Remote", to_part: int) -> None:
        """Let results of a part go to another worker directly, if there is a way. HostLost without a word."""
        key = to.invite(to_part)
        if key is None:
            return
        known = to.link.key
        message = pb.Handoff(
            part=part, address=to.name, key=key, fingerprint=known.fingerprint if known else b""
        )
        hop = self._hops[part]
        hop.pushes_to = to._hops[to_part]  # before the answer: that the way breaks may follow at once
        answer = self._ask("handed", part, lambda: self.link.send(handoff=message))
        if not (answer and answer.ok):
            hop.pushes_to = None

    def _ask(self, kind: str, part: int, send: Callable[[], None]) -> Any:
        answer = self._answers[kind, part] = _Answer()
        send()
        if not answer.there.wait(_WAIT):
            # What it says later must not be lost: it may push results by a way that is not known here.
            self._answers.pop((kind, part), None)
            raise HostLost(self.name, f"the worker has not answered for {_WAIT:.0f} seconds")
        return answer.message

    def _answer(self, kind: str, message: Any) -> None:
        answer = self._answers.pop((kind, message.part), None)
        if answer is None:
            raise ProtocolError(f"{self.name}: the worker answers what nobody asked")
        answer.come(message)


def _interrupted() -> Interrupted:
    return Interrupted("the computation was interrupted")


class _Answer:
    """What a worker says to a question; None: it is lost."""

    def __init__(self) -> None:
        self.there, self.message = threading.Event(), None

    def come(self, message: Any) -> None:
        """There it is."""
        self.message = message
        self.there.set()
