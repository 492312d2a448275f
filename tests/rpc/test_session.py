"""Clients that leave, and next workers that do not read: what a session had is given back."""

import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from ggrun.rpc import ggrun_pb2 as pb
from ggrun.rpc import session
from ggrun.rpc.handoff import Handoff
from ggrun.rpc.hashes import Stop, check, never
from ggrun.rpc.ledger import UnderWay
from ggrun.rpc.opening import Declared
from ggrun.rpc.session import Session
from ggrun.rpc.shop import Shop
from ggrun.rpc.store import Bytes, Library
from tests.rpc.script import ROOM, Script, await_kind, talk
from tests.waiting import PATIENCE


@pytest.mark.parametrize("of_all", [False, True])
def test_a_next_worker_that_does_not_read(
    shop: Shop, path: Path, monkeypatch: pytest.MonkeyPatch, of_all: bool
) -> None:
    """What is pushed to it and not taken counts as under way: the session ends before memory does."""
    if of_all:
        shop = replace(shop, under_way=UnderWay(256 << 10))
        shop.under_way.enter("another client")
    else:
        monkeypatch.setattr(session, "_MOST_HELD", 128 << 10)
    script, stop = Script(path), threading.Event()

    def inbox(pushes: Any, context: Any) -> Iterator[bytes]:
        yield b""
        stop.wait(PATIENCE)

    handlers = {"Inbox": grpc.stream_stream_rpc_method_handler(inbox)}
    deaf = grpc.server(ThreadPoolExecutor(1), options=[("grpc.http2.bdp_probe", 0)])
    deaf.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("ggrun.Worker", handlers),))
    address = f"127.0.0.1:{deaf.add_insecure_port('127.0.0.1:0')}"
    deaf.start()
    push, pushed, sent = Handoff.push, threading.Semaphore(0), 0

    def counted(self: Handoff, batch: int, values: bytes) -> None:
        push(self, batch, values)
        pushed.release()

    monkeypatch.setattr(Handoff, "push", counted)

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
            while not (pushed.acquire(timeout=0.01) or any(r.HasField("failed") for r in replies)):
                pass

    replies = talk(shop, requests)
    stop.set()
    deaf.stop(0)
    assert [reply.HasField("failed") for reply in replies[-2:]] == [False, True], "it is said once"
    assert "MiB of batches are under way" in replies[-1].failed.text
    assert ("of all clients" in replies[-1].failed.text) == of_all
    assert sent < 2000
    assert replies[-2].handed.ok


def test_a_client_that_goes_while_its_open_is_read(
    shop: Shop, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is reserved for a session that has given back what it had."""
    script, reading, gone, read = Script(path), threading.Event(), threading.Event(), session.read

    def slow(*args: Any) -> Any:
        opening = read(*args)
        reading.set()
        assert gone.wait(PATIENCE)
        return opening

    monkeypatch.setattr(session, "read", slow)
    done = threading.Event()

    def requests() -> Iterator[bytes]:
        yield pb.Request(hello=script.hello).SerializeToString()
        yield pb.Request(open=script.open).SerializeToString()
        done.set()

    answers = Session(shop, "fuzz", bool).answer(requests())
    next(answers)
    assert reading.wait(PATIENCE)
    answers.close()  # type: ignore[attr-defined]
    gone.set()
    assert done.wait(PATIENCE)
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
        assert hashing.wait(PATIENCE)
        assert shop.ledger.free("cpu:0:64MB") < ROOM

    replies = talk(replace(shop, library=Slow(None)), requests)
    assert [reply.WhichOneof("kind") for reply in replies] == ["welcome"]
    assert shop.ledger.free("cpu:0:64MB") == ROOM
