"""Hostile clients: whatever comes, one line is the worst that happens."""

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
import psutil
import pytest

from ggrun.plan.hardware import DeviceInfo
from ggrun.rpc import ggrun_pb2 as pb
from ggrun.rpc import session
from ggrun.rpc.handoff import Doors
from ggrun.rpc.hashes import Stop, check, never
from ggrun.rpc.ledger import Ledger
from ggrun.rpc.opening import Declared
from ggrun.rpc.session import Session, Shop
from ggrun.rpc.store import Bytes, Library, Store
from tests.rpc.hostile import MANY, ROOM, Script, mutated
from tests.tiny import Tiny


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Tiny(layers=2, experts=4, experts_used=2).write(tmp_path_factory.mktemp("fuzz") / "model.gguf")


@pytest.fixture
def shop(path: Path, tmp_path: Path) -> Shop:
    device = DeviceInfo("cpu:0:64MB", ROOM, ROOM, 1e10, 1e11, 1e10, "CPU", shared=False)
    ledger, store = Ledger({device.name: ROOM}), Store(tmp_path / "store", 1 << 30)
    return Shop((device,), 1, ledger, store, Library(path.parent), Doors(), insecure=1)


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
