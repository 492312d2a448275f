"""Hostile workers: whatever comes, one line is the worst that happens."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message

from ggrun.errors import GgrunError
from ggrun.rpc import PROTOCOL, wire
from ggrun.rpc import ggrun_pb2 as pb
from ggrun.rpc.remote import Remote
from tests.rpc.hostile import MANY, ROOM, Script, disturb, mutated
from tests.tiny import Tiny


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Tiny(layers=2, experts=4, experts_used=2).write(tmp_path_factory.mktemp("fuzz") / "model.gguf")


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
