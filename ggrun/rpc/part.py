"""A client's stages on the worker: activations or tokens in, activations or logits out, in order."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from itertools import pairwise
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggrun.devices.base import Device, Place
from ggrun.devices.streams import INLINE, Event, Stream
from ggrun.engine.batch import Batch
from ggrun.engine.loaded import Loaded
from ggrun.engine.outputs import Outputs, Scores
from ggrun.engine.stage import LoadedStage
from ggrun.engine.weights import Model
from ggrun.errors import GgrunError
from ggrun.rpc import ggrun_pb2 as pb
from ggrun.rpc import wire
from ggrun.rpc.ledger import Held
from ggrun.rpc.opening import Opening
from ggrun.rpc.wire import SMALL, ProtocolError, Room

Emit = Callable[["pb.Forward", NDArray[np.float32], NDArray[np.int32] | None], None]
Fail = Callable[["pb.Forward", BaseException], None]


class Arrived:
    """Activations that came from elsewhere: a Sender that has them already."""

    stream: Stream = INLINE

    def __init__(self, values: NDArray[np.float32]) -> None:
        self._values = values

    def copy(self, rows: int, device: Device, place: Place) -> None:
        """Write them now."""
        device.write(place, self._values[:rows])

    def download(self, rows: int, out: NDArray[np.float32]) -> None:
        """They are on the host."""
        np.copyto(out, self._values[:rows])


class Inbox:
    """What another worker pushed and no batch has taken yet: the latest few, by the numbers that it has.

    held    counts what is in it
    """

    def __init__(self, slots: int, nbytes: int, held: Held) -> None:
        self._slots, self._nbytes, self._held = slots, nbytes, held
        self._pushed: OrderedDict[int, bytes] = OrderedDict()
        self._changed = threading.Condition()

    @property
    def room(self) -> Room:
        """Of a push."""
        return Room(self._nbytes + SMALL.nbytes)

    def put(self, push: "pb.Push") -> None:
        """ProtocolError for what is more than any batch has, or comes twice."""
        if len(push.values) > self._nbytes:
            raise ProtocolError(f"{len(push.values)} bytes were pushed, a batch has up to {self._nbytes}")
        left_over = []
        with self._changed:
            if push.batch in self._pushed:
                raise ProtocolError(f"batch {push.batch} was pushed twice")
            self._pushed[push.batch] = push.values
            while len(self._pushed) > self._slots:  # of a run that was given up
                left_over.append(self._pushed.popitem(last=False)[1])
            self._changed.notify_all()
        for values in left_over:
            self._held.release(len(values))
        self._held.hold(len(push.values))

    def take(self, number: int, given_up: Callable[[], bool]) -> bytes | None:
        """Wait for a batch's activations; None when they are not wanted any more."""
        with self._changed:
            self._changed.wait_for(lambda: number in self._pushed or given_up())
            values = self._pushed.pop(number, None)
        if values is not None:
            self._held.release(len(values))
        return values

    def look_again(self) -> None:
        """Let who waits see that it has been given up."""
        with self._changed:
            self._changed.notify_all()


class Work:
    """The stages, loaded. `run` is for one thread; results come in the order of batches, from any.

    emit    takes what a batch gave: activations [tokens, width], or logits [outputs, n] and whose they are
    fail    takes why it gave nothing
    held    counts what is pushed
    """

    def __init__(
        self, opening: Opening, model: Model, devices: dict[str, Device], emit: Emit, fail: Fail, held: Held
    ) -> None:
        self._opening, self._emit, self._fail = opening, emit, fail
        self.slots = opening.slots
        self.loaded = Loaded(
            opening.plan, opening.stages, devices, model, opening.config, opening.cache, opening.limits,
            opening.slots,
        )  # fmt: skip
        self.loaded.synchronize()
        self._stages = {i: stage for i, stage in self.loaded.stages.items() if isinstance(stage, LoadedStage)}
        self.inboxes = [Inbox(2 * opening.slots, opening.activation_bytes, held) for _ in opening.parts]
        self._count, self._late = 0, 0
        self._outlet: SimpleQueue[Any] = SimpleQueue()
        self._lock = threading.Lock()
        self._results = threading.Thread(target=self._await, daemon=True, name="ggrun-results")
        self._results.start()

    @property
    def room(self) -> Room:
        """Of a batch's message."""
        return wire.forward_room(self._opening.limits, self._opening.activation_bytes)

    def check(self, message: "pb.Forward") -> Batch:
        """The batch of a message; ProtocolError for what no honest client sends."""
        if message.part >= len(self._opening.parts):
            raise ProtocolError(f"part {message.part}: there are {len(self._opening.parts)}")
        return wire.batch(message, self._opening.bounds, self._opening.parts[message.part].start == 0)

    def run(self, message: "pb.Forward", batch: Batch, given_up: Callable[[], bool]) -> None:
        """Enqueue a batch through a part.

        given_up: says when to wait no more for activations that are to be pushed
        """
        part = self._opening.parts[message.part]
        stages = [self._stages[i] for i in part]
        slot = self._count % self._opening.slots
        self._count += 1
        if part.start:
            values = self._activations(message, batch, given_up)
            if values is None:
                return
            stages[0].accept([Arrived(values)], batch, slot)
            stages[0].receive(batch, slot)
        stages[0].run(batch)
        for before, stage in pairwise(stages):
            before.send(batch, stage, slot)
            stage.receive(batch, slot)
            stage.run(batch)
        self._finish(message, batch, stages, last=part.stop == len(self._opening.plan.stages))

    def reset(self) -> None:
        """Bring the devices to rest."""
        self.loaded.abandon()

    def close(self) -> None:
        """End the thread, which holds memory; the devices are closed by who opened them."""
        self._outlet.put(None)
        self._results.join()

    def _activations(
        self, message: "pb.Forward", batch: Batch, given_up: Callable[[], bool]
    ) -> NDArray[np.float32] | None:
        data: bytes | None = message.activations
        if message.pushed:
            data = self.inboxes[message.part].take(message.pushed, given_up)
        if data is None:
            return None
        return wire.decode(data, self._opening.form, len(batch.tokens), self._opening.config.width)

    def _finish(self, message: "pb.Forward", batch: Batch, stages: list[LoadedStage], last: bool) -> None:
        stage = stages[-1]
        values: Outputs | NDArray[np.float32]
        if last:
            values = Outputs(batch, self._opening.config.vocab)
            stage.download(batch, values)
        else:
            values = np.empty((len(batch.tokens), self._opening.config.width), np.float32)
            stage.runners[0].download(len(batch.tokens), values)
        # Of all stages: cards do not tell each other of errors.
        streams = dict.fromkeys(runner.stream for one in stages for runner in one.runners)
        events = [stream.record() for stream in streams]
        with self._lock:
            late = self._late or not all(event.done for event in events)
            self._late += 1 if late else 0
        if late:
            self._outlet.put((message, values, events))
        else:  # without a way through another thread
            self._tell(message, values, events)

    def _await(self) -> None:
        while item := self._outlet.get():
            self._tell(*item)
            with self._lock:
                self._late -= 1

    def _tell(
        self, message: "pb.Forward", values: Outputs | NDArray[np.float32], events: list[Event]
    ) -> None:
        try:
            for event in events:
                event.block()
                if event.error:
                    raise event.error
        except Exception as error:  # whatever it is, the client is told
            self._fail(message, error)
        else:
            scores = values.scores() if isinstance(values, Outputs) else Scores(values)
            self._emit(message, *scores)


def explained(error: BaseException) -> str:
    """What the client is told of an error."""
    if isinstance(error, GgrunError):
        return str(error)
    if isinstance(error, MemoryError):
        return "the worker is out of memory"
    return f"the worker has an internal error: {type(error).__name__}: {error}"
