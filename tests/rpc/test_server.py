"""Clients that misbehave at a worker's door: none keeps what others need."""

import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import grpc
import pytest

from ggrun.engine.hosts import HostLost
from ggrun.plan.hardware import DeviceInfo
from ggrun.rpc import PROTOCOL, server, session
from ggrun.rpc import ggrun_pb2 as pb
from ggrun.rpc.handoff import KEY, Doors
from ggrun.rpc.ledger import Held, Ledger
from ggrun.rpc.link import Link
from ggrun.rpc.part import Inbox
from ggrun.rpc.server import Server
from ggrun.rpc.shop import Shop
from ggrun.rpc.store import Library, Store
from tests.waiting import PATIENCE, until

HELLO = pb.Request(hello=pb.Hello(protocol=PROTOCOL)).SerializeToString()
LARGE = "x" * (8 << 20)  # more than a connection holds for who does not read


@pytest.fixture
def one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server for one client. Its parameter: seconds for a handshake."""
    monkeypatch.setattr(server, "_LOOK", 0.05)
    monkeypatch.setattr(server, "_HANDSHAKE", getattr(request, "param", PATIENCE))
    monkeypatch.setattr(session, "_LAST_WORDS", 0.2)
    device = DeviceInfo("cpu:0:64MB", 64 << 20, 64 << 20, 1e10, 1e11, 1e10, shared=False)
    ledger, store = Ledger({device.name: device.free}), Store(tmp_path, 0)
    made = Server(Shop((device,), 1, ledger, store, Library(None), Doors(), 1), "127.0.0.1:0", None, None, 1)
    yield made
    made.close()


@pytest.fixture
def silent(one: Server) -> Iterator[list[socket.socket]]:
    """Connections that say nothing."""
    with ExitStack() as stack:
        address = "127.0.0.1", one.port
        yield [stack.enter_context(socket.create_connection(address)) for _ in range(100)]


def test_only_so_many_connections_are_taken(silent: list[socket.socket]) -> None:
    refused = 100 - (4 + 64)
    until(lambda: sum(map(ended, silent)) >= refused)
    assert sum(map(ended, silent)) == refused


@pytest.mark.parametrize("one", [0.3], indirect=True)
def test_connections_that_say_nothing_end(one: Server, silent: list[socket.socket]) -> None:
    """Others come in again."""
    begun = time.monotonic()
    until(lambda: all(map(ended, silent)))
    assert time.monotonic() - begun < 60  # of themselves they would in 120 seconds

    def comes_in() -> bool:  # it has no longer to say something than they had
        try:
            Link(f"127.0.0.1:{one.port}", None).close()
        except HostLost:
            return False
        return True

    until(comes_in)


def ended(connection: socket.socket) -> bool:
    """Whether the other side has closed it; what that said before is read."""
    try:
        connection.setblocking(False)
        while connection.recv(1 << 10):
            pass
    except BlockingIOError:
        return False
    except ConnectionError:
        pass
    return True


def test_a_method_that_there_is_not(one: Server, caplog: pytest.LogCaptureFixture) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{one.port}") as channel:
        with pytest.raises(grpc.RpcError, match=r"there is no /ggrun.Worker/Sh\?ell") as caught:
            channel.unary_unary("/ggrun.Worker/Sh\x7fell")(b"ls")
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
    (line,) = [record.message for record in caplog.records]
    assert re.match(r"127.0.0.1:\d+: refused: there is no /ggrun.Worker/Sh\?ell", line)


def test_an_inbox_ends_with_its_session(one: Server) -> None:
    """So does one whose key is made anew; a key opens once, and inboxes are no more than threads for them."""
    doors, held = one._shop.doors, Held(one._shop.under_way, bool)
    inbox = Inbox(2, 100, held)
    with grpc.insecure_channel(f"127.0.0.1:{one.port}") as channel:

        def enter(key: bytes) -> Any:
            push = channel.stream_stream("/ggrun.Worker/Inbox")
            return push(iter(SimpleQueue[bytes]().get, b""), metadata=[(KEY, key)])

        def ends(call: Any) -> bool:
            return bool(until(call.done)) and call.code() == grpc.StatusCode.CANCELLED

        first = enter(key := doors.open(inbox))
        next(first)
        with pytest.raises(grpc.RpcError, match="no such inbox"):
            next(enter(key))
        second = enter(doors.open(inbox))
        next(second)
        assert ends(first)
        third = enter(doors.open(other := Inbox(2, 100, held)))
        next(third)
        with pytest.raises(grpc.RpcError, match="too many of them"):  # one client: two inboxes
            next(enter(doors.open(Inbox(2, 100, held))))
        doors.close(inbox)
        assert ends(second)
        assert not third.done()
        next(enter(doors.open(inbox)))
        doors.close(other)
        assert ends(third)
        doors.close(inbox)


def test_a_client_that_does_not_read(one: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is sent what it does not take, and does what ends its session: its place is free then."""
    requests: SimpleQueue[bytes] = SimpleQueue()
    address = f"127.0.0.1:{one.port}"
    with grpc.insecure_channel(address) as channel:
        call = channel.stream_stream("/ggrun.Worker/Session")(iter(requests.get, b""))
        with monkeypatch.context() as patch:
            patch.setattr(Shop, "welcome", lambda _: pb.Reply(welcome=pb.Welcome(version=LARGE)))
            requests.put(HELLO)
            until(lambda: one.sessions == 1)
            requests.put(HELLO)
            until(lambda: one.sessions == 0)
        Link(address, None).close()
        call.cancel()
        requests.put(b"")


def test_a_connection_that_is_not_used_ends(one: Server, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """And one with a session does not, however quiet it is."""
    monkeypatch.setattr(server, "_IDLE", 0.2)
    brisk = Server(shop, "127.0.0.1:0", None, None, 1)
    address, states = f"127.0.0.1:{brisk.port}", list[grpc.ChannelConnectivity]()
    link = Link(address, None)
    with grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        channel.subscribe(states.append, try_to_connect=True)
        until(lambda: grpc.ChannelConnectivity.READY in states, "the connection")
        until(lambda: states[-1] is not grpc.ChannelConnectivity.READY, "its end")
    assert link.error is None
    link.close()
    brisk.close()


def test_the_end_waits_for_what_computes(one: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer than gRPC does, which gives a session a second: whoever ends ggrun closes the log next."""
    computes = session.Session._let_go

    def at_last(ended: session.Session) -> None:
        time.sleep(2.0)
        computes(ended)

    monkeypatch.setattr(session.Session, "_let_go", at_last)
    with grpc.insecure_channel(f"127.0.0.1:{one.port}") as channel:
        call = channel.stream_stream("/ggrun.Worker/Session")(iter([HELLO]))
        next(call)
        one.close()
        assert one.sessions == 0
