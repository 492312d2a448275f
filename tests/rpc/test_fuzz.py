"""Hostile clients and hostile workers: whatever comes, one line is the worst that happens."""

import gc
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
from google.protobuf.message import Message

from ggrun.devices.base import Limits
from ggrun.devices.best import TopK
from ggrun.engine.batch import Batch
from ggrun.engine.runner import CacheSpec
from ggrun.errors import GgrunError
from ggrun.gguf import GGUF
from ggrun.plan import Plan
from ggrun.plan.facts import ModelFacts
from ggrun.plan.hardware import DeviceInfo
from ggrun.rpc import PROTOCOL, session, wire
from ggrun.rpc import ggrun_pb2 as pb
from ggrun.rpc.handoff import Doors
from ggrun.rpc.hashes import Stop, check, hashes, never
from ggrun.rpc.ledger import Ledger
from ggrun.rpc.opening import Declared, opening, wanted
from ggrun.rpc.remote import Remote
from ggrun.rpc.session import Session, Shop
from ggrun.rpc.store import Bytes, Library, Store
from tests.rpc.processes import plan_of
from tests.tiny import Tiny

ROOM = 64 << 20
MANY = [2_000, pytest.param(100_000, marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Tiny(layers=2, experts=4, experts_used=2).write(tmp_path_factory.mktemp("fuzz") / "model.gguf")


@pytest.fixture
def shop(path: Path, tmp_path: Path) -> Shop:
    device = DeviceInfo("cpu:0:64MB", ROOM, ROOM, 1e10, 1e11, 1e10, "CPU", shared=False)
    ledger, store = Ledger({device.name: ROOM}), Store(tmp_path / "store", 1 << 30)
    return Shop((device,), 1, ledger, store, Library(path.parent), Doors(), insecure=1)


class Script:
    """What an honest client says: loads all of a model but the embedding, and computes."""

    def __init__(self, path: Path) -> None:
        self.model = GGUF(path)
        self.plan: Plan = plan_of(path, ("cpu", 1), ("w/cpu:0:64MB", 4))
        self.cache, self.limits = CacheSpec(2), Limits(8, 8, 2, 2)
        facts = ModelFacts.from_outline(self.model)
        digests = hashes(self.model, sorted(wanted(facts, self.plan, [1]) & self.model.tensors.keys()))
        self.open = opening(
            "w", self.plan, [range(1, 2)], self.model, digests, self.cache, self.limits, 128, 3, pb.F32
        )
        self.hello = pb.Hello(protocol=PROTOCOL, version="0.1.0")

    def batch(self, rng: random.Random) -> Batch:
        n = rng.randint(1, 8)
        slots = np.arange(n, dtype=np.int32)
        outputs = np.array([rng.random() < 0.5 for _ in range(n)])
        pages = np.arange(2, dtype=np.int32)
        top = rng.choice([None, TopK(4, 40)])
        return Batch(slots, slots, np.zeros(n, np.int32), slots, outputs, {0: pages}, top)

    def forward(self, rng: random.Random, number: int) -> pb.Forward:
        batch = self.batch(rng)
        message = wire.forward(batch, 1, number, 0, False)
        message.activations = wire.encode(np.ones((len(batch.tokens), 64), np.float32), pb.F32)
        return message

    def chunk(self, rng: random.Random) -> pb.Chunk:
        i = rng.randrange(len(self.open.tensors))
        data = self.model.tensors[self.open.tensors[i].name].data.tobytes()
        return pb.Chunk(tensor=i, data=data[: rng.randint(1, len(data))])

    def after(self, rng: random.Random, number: int) -> pb.Request:
        """Anything that may come after Open."""
        kinds: list[Callable[[], dict[str, Message]]] = [
            *[lambda: {"forward": self.forward(rng, number)}] * 6,
            lambda: {"chunk": self.chunk(rng)},
            lambda: {"ping": pb.Ping(number=number, ballast=bytes(rng.randint(0, 100)))},
            lambda: {"interrupt": pb.Interrupt()},
            lambda: {"reset": pb.Reset(run=rng.randint(0, 3), resume=True)},
            lambda: {"invite": pb.Invite(part=rng.randint(0, 1))},
            lambda: {"handoff": pb.Handoff(part=0, address="127.0.0.1:9", key=bytes(32))},
        ]
        return pb.Request(**rng.choice(kinds)())  # type: ignore[arg-type]


def mutated(message: Message, rng: random.Random) -> bytes:
    """Bytes near to a message: a field of another value, or bytes that are flipped, lost or made up."""
    changed = type(message)()
    changed.CopyFrom(message)
    if rng.random() < 0.7:
        disturb(changed, rng)
        return changed.SerializeToString()
    data = bytearray(changed.SerializeToString())
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(data) + 1)
        if rng.random() < 0.5 and data:
            data[at % len(data)] ^= 1 << rng.randrange(8)
        elif rng.random() < 0.5:
            del data[at : at + rng.randint(1, 20)]
        else:
            data[at:at] = rng.randbytes(rng.randint(1, 20))
    return bytes(data)


def disturb(message: Message, rng: random.Random) -> None:
    """Change one field, however deep."""
    fields = message.ListFields()
    if not fields:
        return
    field, value = rng.choice(fields)
    if field.is_repeated:
        if value and rng.random() < 0.2:
            del value[rng.randrange(len(value))]
        elif field.message_type:
            disturb(rng.choice(value), rng) if value else value.add()
        else:
            value[rng.randrange(len(value))] = other(value[0], rng)
    elif field.message_type:
        disturb(value, rng)
    elif field.enum_type:
        setattr(message, field.name, rng.choice([0, 1, 2, 3, 99]))
    else:
        setattr(message, field.name, other(value, rng))


def other(value: Any, rng: random.Random) -> Any:
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice([0, 1, value + 1, max(0, value - 1), rng.getrandbits(8), (1 << 31) - 1, 1 << 31])
    if isinstance(value, float):
        return rng.choice([0.0, -1.0, 1e300, float("nan"), float("inf")])
    if isinstance(value, bytes):
        edges = [b"", value[:-1], value + value[:1], rng.randbytes(len(value)), b"\xff" * len(value)]
        return rng.choice([*edges, bytes(len(value)), value[:4]])
    whole = rng.randrange(len(value) + 1)
    digits = "".join(rng.choice("0123456789") if c.isdigit() and rng.random() < 0.1 else c for c in value)
    return rng.choice(["", value[:whole], value + "\x1b[2J", digits, value.replace("0", "-1", 1), "[" * 5000])


def talk(shop: Shop, requests: Callable[[list[pb.Reply]], Iterator[bytes]]) -> list[pb.Reply]:
    """A session from its first word to its end; requests: may look at the replies so far."""
    replies: list[pb.Reply] = []
    done = threading.Event()

    def answer() -> None:
        for reply in Session(shop, "fuzz", bool).answer(requests(replies)):
            replies.append(reply)
        done.set()

    threading.Thread(target=answer, daemon=True).start()
    assert done.wait(30), "the session hangs"
    return replies


def said(script: Script, rng: random.Random, count: int, replies: list[pb.Reply]) -> Iterator[bytes]:
    """What a client says that goes wrong somewhere."""
    wrong = rng.choice(("hello", "open", "after", "after", "after", "after"))
    hello, open_ = pb.Request(hello=script.hello), pb.Request(open=script.open)
    yield mutated(hello, rng) if wrong == "hello" else hello.SerializeToString()
    yield mutated(open_, rng) if wrong == "open" else open_.SerializeToString()
    deadline = time.monotonic() + (0.1 if wrong == "open" else 5)
    while time.monotonic() < deadline and not any(reply.HasField("ready") for reply in replies):
        time.sleep(0.001)
    for number in range(1, count):
        request = script.after(rng, number)
        bad = wrong == "after" and rng.random() < 0.1
        yield mutated(request, rng) if bad else request.SerializeToString()


def memory() -> int:
    gc.collect()
    return int(psutil.Process().memory_info().rss)


@pytest.mark.parametrize("messages", MANY)
def test_a_hostile_client(shop: Shop, path: Path, messages: int) -> None:
    script, rng = Script(path), random.Random(1)
    sent = ready = before = 0
    ends: set[str] = set()
    while sent < messages:
        count = rng.randint(1, 60)
        replies = talk(shop, partial(said, script, rng, count))
        sent += 1 + count
        ready += any(reply.HasField("ready") for reply in replies)
        for text in (reply.failed.text for reply in replies if reply.HasField("failed")):
            assert "internal error" not in text, text
            assert len(text.splitlines()) == 1
            ends.add(text.partition(":")[0])
        assert shop.ledger.free("cpu:0:64MB") == ROOM
        if sent > messages // 4 and not before:
            before = memory()
    assert ready > 5
    assert len(ends) > 5
    assert memory() - before < 50 << 20


def test_a_next_worker_that_does_not_read(shop: Shop, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is pushed to it and not taken counts as under way: the session ends before memory does."""
    monkeypatch.setattr(session, "_MOST_HELD", 128 << 10)
    script, stop = Script(path), threading.Event()

    def inbox(pushes: Any, context: Any) -> Iterator[bytes]:
        yield b""
        stop.wait(30)

    handlers = {"Inbox": grpc.stream_stream_rpc_method_handler(inbox)}
    deaf = grpc.server(ThreadPoolExecutor(1), options=[("grpc.http2.bdp_probe", 0)])
    deaf.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("ggrun.Worker", handlers),))
    address = f"127.0.0.1:{deaf.add_insecure_port('127.0.0.1:0')}"
    deaf.start()
    sent = 0

    def requests(replies: list[pb.Reply]) -> Iterator[bytes]:
        nonlocal sent
        yield pb.Request(hello=script.hello).SerializeToString()
        yield pb.Request(open=script.open).SerializeToString()
        await_kind(replies, "ready")
        handoff = pb.Handoff(part=0, address=address, key=bytes(32))
        yield pb.Request(handoff=handoff).SerializeToString()
        await_kind(replies, "handed")
        forward = script.forward(random.Random(3), 1)
        forward.outputs, forward.top = b"\1" * len(forward.outputs), 0
        while sent < 2000 and not any(reply.HasField("failed") for reply in replies):
            sent += 1
            forward.batch = sent
            yield pb.Request(forward=forward).SerializeToString()
            time.sleep(0.001)

    replies = talk(shop, requests)
    stop.set()
    deaf.stop(0)
    assert "MiB of batches are under way" in replies[-1].failed.text
    assert sent < 2000
    assert replies[-2].handed.ok


def await_kind(replies: list[pb.Reply], kind: str) -> None:
    deadline = time.monotonic() + 10
    while not any(reply.HasField(kind) for reply in replies):
        assert time.monotonic() < deadline, replies
        time.sleep(0.001)


def test_a_client_that_goes_while_its_open_is_read(
    shop: Shop, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is reserved for a session that has given back what it had."""
    script, reading, gone, read = Script(path), threading.Event(), threading.Event(), session.read

    def slow(*args: Any) -> Any:
        opening = read(*args)
        reading.set()
        assert gone.wait(10)
        return opening

    monkeypatch.setattr(session, "read", slow)
    done = threading.Event()

    def requests() -> Iterator[bytes]:
        yield pb.Request(hello=script.hello).SerializeToString()
        yield pb.Request(open=script.open).SerializeToString()
        done.set()

    answers = Session(shop, "fuzz", bool).answer(requests())
    next(answers)
    assert reading.wait(10)
    answers.close()  # type: ignore[attr-defined]
    gone.set()
    assert done.wait(10)
    assert shop.ledger.free("cpu:0:64MB") == ROOM


def test_who_leaves_while_files_are_hashed(shop: Shop, path: Path) -> None:
    """Nothing is computed for who has gone, and the memory is free again."""
    hashing = threading.Event()

    class Slow(Library):
        def find(self, tensors: list[Declared], stop: Stop = never) -> dict[str, Bytes]:
            hashing.set()
            while True:
                check(stop)
                time.sleep(0.001)

    def requests(replies: list[pb.Reply]) -> Iterator[bytes]:
        script = Script(path)
        yield pb.Request(hello=script.hello).SerializeToString()
        yield pb.Request(open=script.open).SerializeToString()
        assert hashing.wait(30)
        assert shop.ledger.free("cpu:0:64MB") < ROOM

    replies = talk(replace(shop, library=Slow(None)), requests)
    assert [reply.WhichOneof("kind") for reply in replies] == ["welcome"]
    assert shop.ledger.free("cpu:0:64MB") == ROOM


# ---------------------------------------------------------------- a hostile worker


class FakeLink:
    """A link to nobody: what is sent is counted, and replies are given by hand."""

    host, key, error = "w", None, None

    def __init__(self, welcome: pb.Welcome) -> None:
        self.welcome, self.handlers, self.sent = welcome, {}, 0
        self.told: list[Callable[[GgrunError], None]] = []

    def on(self, kind: str, handler: Callable[[Any], None]) -> None:
        self.handlers[kind] = handler

    def on_beat(self, check: Callable[[], None]) -> None:
        check()

    def on_end(self, told: Callable[[GgrunError], None]) -> None:
        self.told.append(told)

    def send(self, **_: Any) -> None:
        self.sent += 1

    def measure(self) -> tuple[float, float]:
        return 1e-4, 1e9

    def close(self) -> None:
        self.end(GgrunError("closed"))

    def end(self, error: GgrunError) -> None:
        for told in self.told:
            told(error)

    def take(self, data: bytes) -> None:
        """As Link reads."""
        reply = wire.parsed(pb.Reply, data)
        kind = reply.WhichOneof("kind")
        if kind not in self.handlers:
            raise wire.ProtocolError(f"unexpected {kind}")
        self.handlers[kind](getattr(reply, kind))


def welcome() -> pb.Welcome:
    device = pb.Device(
        name="cpu:0:64MB", label="CPU", memory=ROOM, free=ROOM, bandwidth=1e10, operations=1e11, link=1e10
    )
    return pb.Welcome(protocol=PROTOCOL, version="0.1.0", devices=[device])


@pytest.mark.parametrize("messages", MANY)
def test_a_hostile_worker(path: Path, messages: int) -> None:
    script, rng, refused, taken = Script(path), random.Random(2), 0, 0
    while refused + taken < messages:
        greeting = welcome()
        if rng.random() < 0.3:
            disturb(greeting, rng)
        try:
            remote = Remote(FakeLink(greeting), pb.F32)  # type: ignore[arg-type]
        except GgrunError as error:
            assert len(str(error).splitlines()) == 1  # noqa: PT017
            refused += 1
            continue
        link: Any = remote.link
        (hop,) = remote.begin(script.plan, [range(1, 2)], script.model, script.cache, script.limits, 3)
        for number in range(1, 20):
            batch = script.batch(rng)
            pending = remote.expect(hop, batch, number, True)
            values = bytes(4 * pending.rows * pending.width)
            ids = values if batch.top else b""
            replies: list[dict[str, Message]] = [
                *[{"result": pb.Result(run=1, batch=number, values=values, ids=ids)}] * 4,
                {"failed": pb.Failed(kind=3, text="no\x1b[2J\nmore", run=1)},
                {"received": pb.Received(bytes=1)},
                {"missing": pb.Missing(wants=[pb.Want(tensor=3, offset=7)])},
                {"ready": pb.Ready(tensors=["a"])},
                {"invited": pb.Invited(part=0, key=bytes(32))},
                {"handed": pb.Handed(part=0, ok=True)},
            ]
            reply = pb.Reply(**rng.choice(replies))  # type: ignore[arg-type]
            data = mutated(reply, rng) if rng.random() < 0.5 else reply.SerializeToString()
            try:
                link.take(data)
                taken += 1
            except GgrunError as error:
                assert all(c.isprintable() for c in str(error))  # noqa: PT017
                refused += 1
            if pending.event.done and pending.event.error is None:
                assert pending.values.shape == (pending.rows, pending.width)
        remote.close()
    assert refused > messages // 50
    assert taken > messages // 50
