"""Hostile clients and hostile workers: whatever comes, one line is the worst that happens."""

import gc
import random
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from google.protobuf.message import Message

from ggrun.errors import GgrunError
from ggrun.rpc import PROTOCOL, wire
from ggrun.rpc import ggrun_pb2 as pb
from ggrun.rpc.framing import messages
from ggrun.rpc.remote import Remote
from ggrun.rpc.shop import Shop
from tests.rpc.script import ROOM, Script, talk
from tests.waiting import PATIENCE

MANY = [2_000, pytest.param(100_000, marks=pytest.mark.slow)]


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


def said(script: Script, rng: random.Random, count: int, replies: list[pb.Reply]) -> Iterator[bytes]:
    """What a client says that goes wrong somewhere."""
    wrong = rng.choice(("hello", "open", "after", "after", "after", "after"))
    hello, open_ = pb.Request(hello=script.hello), pb.Request(open=script.open)
    yield mutated(hello, rng) if wrong == "hello" else hello.SerializeToString()
    yield mutated(open_, rng) if wrong == "open" else open_.SerializeToString()
    kinds = ("ready", "failed", *(["missing"] if wrong == "open" else []))
    deadline = time.monotonic() + (0.1 if wrong == "open" else PATIENCE)  # what opens nothing has no answer
    while time.monotonic() < deadline and not any(reply.HasField(k) for reply in replies for k in kinds):
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
    grown = memory() - before
    print(f"{sent} messages, {ready} models loaded: {grown / 2**20:+.1f} MiB after the first quarter")
    assert grown < 50 << 20


# ---------------------------------------------------------------- a hostile worker


class FakeLink:
    """A link to nobody: what is sent is counted, and replies are given by hand."""

    host, key, error = "w", None, None

    def __init__(self, welcome: pb.Welcome) -> None:
        self.welcome, self.handlers, self.sent = welcome, {}, 0
        self.rooms: dict[str, wire.Room] = {}
        self.told: list[Callable[[GgrunError], None]] = []

    def on(self, kind: str, handler: Callable[[Any], None], room: wire.Room = wire.SMALL) -> None:
        self.handlers[kind], self.rooms[kind] = handler, room

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
        for kind, reply in messages(pb.Reply, [data], lambda kind: self.rooms.get(kind, wire.SMALL)):
            if kind not in self.handlers:
                raise wire.ProtocolError(f"unexpected {kind}")
            self.handlers[kind](reply)


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
