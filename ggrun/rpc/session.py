"""One client of a worker, from Hello to its end: checks what comes, and computes in a thread of its own."""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggrun import __version__
from ggrun.devices import open_devices
from ggrun.devices.base import Device
from ggrun.engine.batch import Batch
from ggrun.errors import GgrunError, Interrupted
from ggrun.rpc import PROTOCOL
from ggrun.rpc import ggrun_pb2 as pb
from ggrun.rpc.framing import messages
from ggrun.rpc.handoff import Handoff
from ggrun.rpc.intake import MOST_CHUNK, Intake
from ggrun.rpc.jobs import Jobs
from ggrun.rpc.ledger import Held, NoRoom
from ggrun.rpc.opening import ROOM, Opening, read
from ggrun.rpc.part import Work, explained
from ggrun.rpc.shop import Shop
from ggrun.rpc.wire import SMALL, ProtocolError, Room, encode, shown

log = logging.getLogger(__name__)
FIRST_WORD = 10.0
"""Seconds that a client has to say Hello."""
SILENCE = 30.0
"""Seconds after which a client that says nothing is gone: it sends a Ping every few seconds."""
SLOWEST = 1 << 20
"""Bytes a second that activations come at, at least: a client that sends some says nothing else meanwhile."""
_PING = Room(1 << 20)  # a client measures the network with some ballast
_CHUNK = Room(MOST_CHUNK + SMALL.nbytes)
_HANDOFF = Room(1 << 10)  # names of machines have up to 253 characters
_MOST_WORDS = 4000
"""Characters of what a client is told of an error."""
_MOST_HELD = 32 << 20
"""Bytes that a client may have under way beside as many as it has reserved, and its slots' logits.

What is reserved has weights, and buffers with a row of activations for each slot and several more: see
plan.usage. For so many things as an honest client has under way that is more than enough.
"""
_TABLE = 256
"""Bytes of a table's objects, more than they take."""
_MOST_REPLIES = 1024
"""Replies that a client has not read: more, and it does not want to."""
_LAST_WORDS = 3.0
"""Seconds that a client has to read why its session is at its end."""


class Session:
    """A client. `answer` is its stream; nothing that it sends can do more than end it.

    cancel    breaks its stream off, from any thread
    """

    def __init__(self, shop: Shop, peer: str, cancel: Callable[[], object]) -> None:
        self._shop, self._peer, self._cancel = shop, peer, cancel
        self._replies: SimpleQueue[pb.Reply | None] = SimpleQueue()
        self._jobs = Jobs()
        self._held = Held(shop.under_way, self.close)
        self._heard, self._greeted = time.monotonic(), False
        self._patience = FIRST_WORD  # seconds of silence
        self._opening: Opening | None = None
        self._reserved: dict[str, int] = {}  # bytes of devices
        self._intake: Intake | None = None
        self._work: Work | None = None
        self._devices: dict[str, Device] = {}
        self._handoffs: dict[int, Handoff | None] = {}  # None: there is no way
        self._resume = False
        self._closed, self._lock = False, threading.Lock()
        self._ended = 0.0  # when it was closed

    def answer(self, requests: Iterable[bytes]) -> Iterator["pb.Reply"]:
        """The replies to a client's requests, as bytes, until one of both ends it."""
        reader = threading.Thread(target=self._read, args=(requests,), daemon=True, name="ggrun-client")
        worker = threading.Thread(target=self._compute, daemon=True, name="ggrun-session")
        self._held.open()
        reader.start()
        worker.start()
        try:
            while (reply := self._replies.get()) is not None:
                is_result = reply.HasField("result")
                if not is_result or reply.result.run == self._jobs.run:  # of others they are not expected
                    yield reply
                if is_result:  # gRPC has it
                    self._held.release(len(reply.result.values))
        finally:
            self.close()
            worker.join()
            self._held.close()

    def check(self) -> None:
        """End the session if its client has been silent for too long; is called every second or so.

        A client that does not read keeps the thread that writes to it, until its stream is broken off.
        """
        now = time.monotonic()
        if self._closed:
            if now - self._ended > _LAST_WORDS:
                self._cancel()
        elif (silent := now - self._heard) > self._patience:
            log.warning("%s: silent for %.0f seconds: its session ends", self._peer, silent)
            self.close()

    def close(self, why: BaseException | None = None) -> None:
        """End it; from any thread. The client is told why, by who is the first."""
        with self._lock:
            if self._closed:
                return
            self._ended, self._closed = time.monotonic(), True
            if why is not None:
                log.warning("%s: refused: %s", self._peer, explained(why))
                self._replies.put(_failed(why, 0))
        self._interrupt()
        if work := self._work:  # the thread that computes lets go of it as soon as the session is closed
            self._look_again(work)
        self._jobs.end()
        self._replies.put(None)

    # ---------------------------------------------------------------- the reader's thread

    def _read(self, requests: Iterable[bytes]) -> None:
        try:
            for kind, message in messages(pb.Request, requests, self._room):
                if self._closed:
                    return
                self._heard = time.monotonic()
                self._take(kind, message)
                if self._replies.qsize() > _MOST_REPLIES:
                    raise ProtocolError("the client does not read its replies")
        except GgrunError as error:
            self.close(error)
        except Exception as error:  # gRPC's own: the client has gone
            if not type(error).__module__.startswith("grpc"):
                self.close(error)
        finally:
            self.close()

    def _room(self, kind: str) -> Room:
        """Of a message of a kind now."""
        match kind:
            case "ping" if self._greeted:
                return _PING
            case "open" if self._greeted and not self._opening:
                return ROOM
            case "chunk" if self._intake:
                return _CHUNK
            case "handoff":
                return _HANDOFF
            case "forward" if self._work:
                return self._work.room
        return SMALL

    def _take(self, kind: str, message: Any) -> None:
        if (kind != "hello") != self._greeted:
            raise ProtocolError("the first message must be Hello, and no other")
        getattr(self, f"_take_{kind}")(message)

    def _take_hello(self, message: "pb.Hello") -> None:
        if message.protocol != PROTOCOL:
            older = "the client" if message.protocol < PROTOCOL else "the worker"
            raise _Version(
                f"the worker is ggrun {__version__} (protocol {PROTOCOL}), the client ggrun "
                f"{shown(message.version)[:20]} (protocol {message.protocol}): update {older}"
            )
        self._greeted, self._patience = True, SILENCE
        self._replies.put(self._shop.welcome())

    def _take_ping(self, message: "pb.Ping") -> None:
        self._replies.put(pb.Reply(pong=pb.Pong(number=message.number)))

    def _take_open(self, message: "pb.Open") -> None:
        if self._opening:
            raise ProtocolError("a session loads stages once")
        opening = read(message, [d.name for d in self._shop.devices])
        needs = opening.needs()
        with self._lock:  # who closes it gives back what is reserved, and nothing may come after
            if self._closed:
                return
            self._shop.ledger.take(needs)
            self._opening, self._reserved = opening, needs
        self._patience = SILENCE + opening.activation_bytes / SLOWEST
        self._held.most = _MOST_HELD + sum(needs.values()) + opening.slots * opening.logits_bytes
        names = ", ".join(f"{name} {nbytes >> 20} MiB" for name, nbytes in needs.items())
        log.info("%s: loads stages %s (%s)", self._peer, opening.stages, names)
        self._jobs.put(self._look_for_weights)

    def _take_chunk(self, message: "pb.Chunk") -> None:
        if self._intake is None:
            raise ProtocolError("a chunk came that nobody waits for")
        before = self._intake.quarters
        if self._intake.take(message):
            self._jobs.put(partial(self._arrived, message.tensor))
        if self._intake.quarters > before:
            log.info("%s: %d %% of the weights have come", self._peer, 25 * self._intake.quarters)
        self._replies.put(pb.Reply(received=pb.Received(bytes=self._intake.received)))

    def _take_forward(self, message: "pb.Forward") -> None:
        work = self._ready()
        batch = work.check(message)
        if message.run < self._jobs.run:
            return
        if message.run > self._jobs.run:
            raise ProtocolError("a run begins with Reset")
        nbytes = message.ByteSize() + _TABLE * len(message.tables)
        self._jobs.put_batch(message, work.slots, partial(self._forward, message, batch, nbytes))
        self._held.hold(nbytes)

    def _take_interrupt(self, message: "pb.Interrupt") -> None:
        self._interrupt()

    def _take_reset(self, message: "pb.Reset") -> None:
        work = self._ready()
        if message.run <= self._jobs.run:
            raise ProtocolError("runs are counted up")
        self._resume = self._resume or message.resume
        self._jobs.begin_run(message.run, partial(self._reset, message.run))
        self._look_again(work)

    def _take_invite(self, message: "pb.Invite") -> None:
        inbox = self._inbox(message.part)
        with self._lock:  # as with memory: what is opened later nobody closes
            if self._closed:
                return
            key = self._shop.doors.open(inbox)
        self._replies.put(pb.Reply(invited=pb.Invited(part=message.part, key=key)))

    def _take_handoff(self, message: "pb.Handoff") -> None:
        self._inbox(message.part)
        if message.part in self._handoffs:
            raise ProtocolError("a part has one inbox to push to")
        self._handoffs[message.part] = None
        lost = partial(self._next_lost, message.part)
        handoff = Handoff(message, self._shop.insecure, self._held.release, lost)
        self._jobs.put(partial(self._connect, message.part, handoff))

    def _ready(self) -> Work:
        if self._work is None:
            raise ProtocolError("nothing is loaded yet")
        return self._work

    def _inbox(self, part: int) -> Any:
        work = self._ready()
        if part >= len(work.inboxes):
            raise ProtocolError(f"part {part}: there are {len(work.inboxes)}")
        return work.inboxes[part]

    # ---------------------------------------------------------------- the thread that computes

    def _compute(self) -> None:
        try:
            while not self._closed and (job := self._jobs.take()):
                job()
        except Exception as error:  # whatever it is, the client is told
            self.close(error)
        self._let_go()

    def _look_for_weights(self) -> None:
        assert self._opening
        self._intake = intake = Intake(self._opening, self._shop.library, self._shop.store)
        if wants := intake.look(lambda: self._closed):
            log.info("%s: %d MiB of weights are missing here", self._peer, intake.total >> 20)
            self._replies.put(pb.Reply(missing=pb.Missing(wants=wants)))
        else:
            self._load()

    def _arrived(self, tensor: int) -> None:
        assert self._intake
        if wants := self._intake.arrived(tensor):
            self._replies.put(pb.Reply(missing=pb.Missing(wants=wants)))
        elif self._intake.complete:
            self._load()

    def _load(self) -> None:
        assert self._opening
        assert self._intake
        model = self._intake.model()
        self._intake.close()
        self._devices = open_devices(self._opening.devices, self._shop.threads)
        work = Work(self._opening, model, self._devices, self._emit, self._fail, self._held)
        self._work = work
        log.info("%s: is ready", self._peer)
        self._replies.put(pb.Reply(ready=pb.Ready(tensors=sorted(work.loaded.tensors))))

    def _forward(self, message: "pb.Forward", batch: Batch, nbytes: int) -> None:
        self._held.release(nbytes)
        if message.run != self._jobs.run:
            return
        try:
            self._ready().run(message, batch, lambda: message.run != self._jobs.run or self._closed)
        except ProtocolError:
            raise
        except Exception as error:  # whatever it is, the client is told
            self._fail(message, error)

    def _reset(self, run: int) -> None:
        if run != self._jobs.run:
            return
        self._ready().reset()
        if self._resume:  # of this one, or of one that came to nothing
            self._resume = False
            for device in self._devices.values():
                device.resume()

    def _connect(self, part: int, handoff: Handoff) -> None:
        if ok := handoff.connect():
            self._handoffs[part] = handoff
        self._replies.put(pb.Reply(handed=pb.Handed(part=part, ok=ok)))

    # ---------------------------------------------------------------- what comes of a batch, from any thread

    def _emit(
        self, message: "pb.Forward", values: NDArray[np.float32], ids: NDArray[np.int32] | None
    ) -> None:
        assert self._opening
        if not self._jobs.done(message):
            return
        last = self._opening.parts[message.part].stop == len(self._opening.plan.stages)
        data = encode(values, pb.F32 if last else self._opening.form)
        if handoff := self._handoffs.get(message.part):
            handoff.push(message.batch, data)
        else:
            result = pb.Result(run=message.run, batch=message.batch, part=message.part, values=data)
            if ids is not None:
                result.ids = ids.astype("<i4", copy=False).tobytes()
            self._replies.put(pb.Reply(result=result))
        self._held.hold(len(data))

    def _next_lost(self, part: int, error: GgrunError) -> None:
        """The client has lost that worker too, or lays its layers elsewhere."""
        if self._closed:  # both sessions end together
            return
        log.warning("%s: %s", self._peer, error)
        failed = pb.Failed(kind=pb.Failed.HANDOFF, text=str(error), run=self._jobs.run, part=part)
        self._replies.put(pb.Reply(failed=failed))

    def _fail(self, message: "pb.Forward", error: BaseException) -> None:
        if not self._jobs.done(message):
            return
        if not isinstance(error, Interrupted):
            log.warning("%s: a batch failed: %s", self._peer, explained(error))
        self._replies.put(_failed(error, message.run))

    # ---------------------------------------------------------------- the end

    def _interrupt(self) -> None:
        for device in self._devices.values():
            device.interrupt()

    def _look_again(self, work: Work) -> None:
        for inbox in work.inboxes:
            inbox.look_again()

    def _let_go(self) -> None:
        """Give back all that the client had."""
        self._close_all()
        if self._intake:
            self._intake.close()
        self._work = self._intake = None
        self._devices = {}
        self._shop.ledger.give(self._reserved)

    def _close_all(self) -> None:
        ends: list[Callable[[], object]] = [
            handoff.close for handoff in list(self._handoffs.values()) if handoff
        ]
        if work := self._work:
            ends += [partial(self._shop.doors.close, inbox) for inbox in work.inboxes]
            ends += [work.reset, work.close]
        ends += [device.close for device in self._devices.values()]
        for end in ends:
            with suppress(Exception):  # a device that fails even now must not keep the memory reserved
                end()


class _Version(ProtocolError):
    """The two sides are of different times."""


def _failed(error: BaseException, run: int) -> "pb.Reply":
    kinds = (
        (_Version, pb.Failed.VERSION),
        (NoRoom, pb.Failed.NO_ROOM),
        (Interrupted, pb.Failed.INTERRUPTED),
        (ProtocolError, pb.Failed.PROTOCOL),
    )
    kind = next((kind for cls, kind in kinds if isinstance(error, cls)), pb.Failed.OTHER)
    return pb.Reply(failed=pb.Failed(kind=kind, text=explained(error)[:_MOST_WORDS], run=run))
