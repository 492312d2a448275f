"""What a client lets wait on a worker: no more than an honest one, whatever it sends, and all has an end."""

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import grpc
import pytest

from ggrun.errors import GgrunError
from ggrun.rpc import ggrun_pb2 as pb
from ggrun.rpc import session
from ggrun.rpc.framing import split
from ggrun.rpc.handoff import KEY
from ggrun.rpc.jobs import Jobs
from ggrun.rpc.ledger import Held, UnderWay
from ggrun.rpc.link import Link
from ggrun.rpc.part import Inbox
from ggrun.rpc.server import Server
from ggrun.rpc.session import Session
from ggrun.rpc.shop import Shop
from ggrun.rpc.wire import ProtocolError
from tests.rpc.script import ROOM, Script
from tests.waiting import PATIENCE, until

SLOTS = 3
"""Of a Script's session."""
OBJECTS = 4 << 10
"""Bytes that count for a thing beside its own."""


class Client:
    """A session over a socket, with a model loaded: what is said is sent as it is."""

    def __init__(self, address: str, script: Script) -> None:
        self.address, self.replies = address, list[pb.Reply]()
        self._script, self._requests = script, SimpleQueue[bytes]()
        self._channel = grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)])
        self._call = self._channel.stream_stream("/ggrun.Worker/Session")(iter(self._requests.get, b""))
        threading.Thread(target=self._read, daemon=True).start()
        self.say(hello=script.hello)
        self.say(open=script.open)
        self.hear("ready")

    def say(self, **kind: Any) -> None:
        self._requests.put(pb.Request(**kind).SerializeToString())

    def hear(self, kind: str, count: int = 1) -> Any:
        """The latest reply of a kind, when so many have come."""
        until(lambda: len(self._of(kind)) >= count, f"{kind} beside {self.replies}")
        return getattr(self._of(kind)[-1], kind)

    def forward(self, number: int, run: int = 1, **changes: Any) -> None:
        message = self._script.forward(random.Random(3), number)
        message.run = run
        for name, value in changes.items():
            setattr(message, name, value)
        self.say(forward=message)

    def waiting(self, number: int, run: int = 1) -> None:
        """A batch of which nobody ever pushes what it needs."""
        self.forward(number, run, activations=b"", pushed=99)

    def refused(self) -> str:
        """Why the session is at its end."""
        return str(self.hear("failed").text)

    def leave(self) -> None:
        self._requests.put(b"")
        self._channel.close()

    def _of(self, kind: str) -> list[pb.Reply]:
        return [reply for reply in self.replies if reply.WhichOneof("kind") == kind]

    def _read(self) -> None:
        try:
            for data in self._call:
                self.replies.append(pb.Reply.FromString(data))
        except grpc.RpcError:
            pass


Come = Callable[[], Client]


@pytest.fixture
def served(shop: Shop, path: Path) -> Iterator[Callable[[Shop], Come]]:
    """Opens a shop's door; then clients come in."""
    servers: list[Server] = []
    clients: list[Client] = []

    def serve(shop: Shop) -> Come:
        servers.append(Server(shop, "127.0.0.1:0", None, None, 2))

        def come() -> Client:
            clients.append(Client(f"127.0.0.1:{servers[-1].port}", Script(path)))
            return clients[-1]

        return come

    yield serve
    for client in clients:
        client.leave()
    for server in servers:
        until(lambda server=server: server.sessions == 0, "the end of all sessions")  # type: ignore[misc]
        server.close()
    assert shop.ledger.free("cpu:0:64MB") == ROOM


@pytest.fixture
def client(shop: Shop, served: Callable[[Shop], Come]) -> Client:
    return served(shop)()


# ---------------------------------------------------------------- what waits for the thread that computes


def test_as_many_batches_as_slots(client: Client) -> None:
    """They may wait, and a run that is over has none: more than slots of one end the session."""
    for run in (1, 2, 3):
        if run > 1:
            client.say(reset=pb.Reset(run=run))
        for number in range(SLOTS):
            client.waiting(SLOTS * run + number, run)
    client.say(ping=pb.Ping(number=7))
    assert client.hear("pong").number == 7
    client.waiting(99, 3)
    assert client.refused() == f"part 0: {SLOTS} batches are under way, and no more can be"


def test_a_batch_that_is_done_makes_room(client: Client) -> None:
    """Whatever became of it."""
    for number in range(1, 5 * SLOTS):
        client.forward(number)
        assert client.hear("result", number).batch == number
    client.say(interrupt=pb.Interrupt())
    for number in range(5 * SLOTS, 10 * SLOTS):
        client.forward(number)
        assert client.hear("failed", number - 5 * SLOTS + 1).kind == pb.Failed.INTERRUPTED


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (lambda client: client.waiting(1), "batch 1 is under way already"),
        (lambda client: client.waiting(2, run=2), "a run begins with Reset"),
        (lambda client: client.say(reset=pb.Reset(run=1)), "runs are counted up"),
        (lambda client: client.say(handoff=handoff("a" * 300 + ":9")), "a part has one inbox to push to"),
        (lambda client: client.say(handoff=handoff("a" * 1000 + ":9")), "of handoff came: up to 1024"),
    ],
    ids=["twice", "another run", "reset", "handoff", "address"],
)
def test_what_no_honest_client_lets_wait(client: Client, said: Callable[[Client], None], why: str) -> None:
    """It is refused when it comes, while the thread that computes waits for something else."""
    client.waiting(1)
    if "inbox" in why:
        client.say(handoff=handoff("127.0.0.1:9"))
    said(client)
    assert why in client.refused()


def handoff(address: str) -> pb.Handoff:
    return pb.Handoff(part=0, address=address, key=bytes(32))


def test_runs_that_are_over_do_not_wait() -> None:
    """However long the thread that computes is at something else; what is the session's does."""
    jobs, let_go = Jobs(), list[int]()
    jobs.put(partial(let_go.append, -1))
    for run in range(2, 100):
        jobs.begin_run(run, partial(let_go.append, 0))
        for number in range(SLOTS):
            jobs.put_batch(pb.Forward(run=run, batch=number), SLOTS, partial(let_go.append, run))
    assert let_go == [do for run in range(2, 99) for do in (0, *[run] * SLOTS)]
    let_go.clear()
    with pytest.raises(ProtocolError, match="3 batches are under way"):
        jobs.put_batch(pb.Forward(run=99, batch=SLOTS), SLOTS, pytest.fail)
    assert not jobs.done(pb.Forward(run=98, batch=1))
    assert jobs.done(pb.Forward(run=99, batch=1))
    jobs.put_batch(pb.Forward(run=99, batch=SLOTS), SLOTS, partial(let_go.append, 99))
    jobs.end()
    while job := jobs.take():
        job()
    assert let_go == [-1, 0, *[99] * (SLOTS + 1)]


# ---------------------------------------------------------------- who waits is woken


@pytest.fixture
def asleep(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Waits until a thread sleeps as it waits for a push."""
    looked, take = SimpleQueue[Inbox](), Inbox.take

    def seen(inbox: Inbox, number: int, given_up: Callable[[], bool]) -> bytes | None:
        def look() -> bool:
            looked.put(inbox)
            return given_up()

        return take(inbox, number, look)

    def wait() -> None:
        with looked.get(timeout=PATIENCE)._changed:  # it was looked with this lock
            pass

    monkeypatch.setattr(Inbox, "take", seen)
    return wait


def test_a_reset_ends_what_waits_for_a_push(client: Client, asleep: Callable[[], None]) -> None:
    client.waiting(1)
    asleep()
    client.say(reset=pb.Reset(run=2))
    client.forward(2, run=2)
    assert client.hear("result").batch == 2


def test_who_leaves_while_a_batch_waits_for_a_push(
    shop: Shop, client: Client, asleep: Callable[[], None]
) -> None:
    """Its session ends, and the memory is free again."""
    client.waiting(1)
    asleep()
    assert shop.ledger.free("cpu:0:64MB") < ROOM
    client.leave()
    until(lambda: shop.ledger.free("cpu:0:64MB") == ROOM, "the memory")


def test_who_leaves_lets_nothing_be_done_any_more(
    shop: Shop, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the worker tries to reach another one, batches wait: they are not computed for nobody."""
    done: list[int] = []
    monkeypatch.setattr(Session, "_connect", lambda self, *_: until(lambda: self._closed))
    monkeypatch.setattr(Session, "_forward", lambda *_: done.append(1))
    client.say(handoff=handoff("127.0.0.1:9"))
    for number in range(SLOTS):
        client.forward(number)
    client.say(ping=pb.Ping(number=7))
    client.hear("pong")
    client.leave()
    until(lambda: shop.ledger.free("cpu:0:64MB") == ROOM, "the memory")
    assert done == []


def test_resumed_by_a_run_that_came_to_nothing(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Reset is left out when the next one comes; that devices work again is not."""
    monkeypatch.setattr(Session, "_connect", lambda self, *_: until(lambda: self._jobs.run == 3))
    client.say(interrupt=pb.Interrupt())
    client.say(handoff=handoff("127.0.0.1:9"))
    client.say(reset=pb.Reset(run=2, resume=True))
    client.say(reset=pb.Reset(run=3))
    client.forward(1, run=3)
    assert client.hear("result").batch == 1


def test_results_of_a_run_that_is_over_are_not_sent(shop: Shop, path: Path) -> None:
    """Those that a client has not read when it says Reset: they count no more."""
    script, said = Script(path), SimpleQueue[bytes]()
    session = Session(shop, "client", bool)
    replies = session.answer(iter(said.get, b""))
    said.put(pb.Request(hello=script.hello).SerializeToString())
    said.put(pb.Request(open=script.open).SerializeToString())
    assert [next(replies).WhichOneof("kind") for _ in range(2)] == ["welcome", "ready"]
    for run in (1, 2):
        if run > 1:
            said.put(pb.Request(reset=pb.Reset(run=run)).SerializeToString())
        forward = script.forward(random.Random(3), run)
        forward.run = run
        said.put(pb.Request(forward=forward).SerializeToString())
        until(lambda run=run: session._replies.qsize() == run, "a result")  # type: ignore[misc]
    assert next(replies).result.run == 2
    said.put(b"")
    assert list(replies) == []


# ---------------------------------------------------------------- bytes


def test_what_was_read_counts_no_more(
    shop: Shop, served: Callable[[Shop], Come], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that reads its results may have any number of them, one after the other."""
    come, results = served(shop), 60
    come()
    reserved = ROOM - shop.ledger.free("cpu:0:64MB")
    monkeypatch.setattr(session, "_MOST_HELD", results * OBJECTS // 4 - reserved)
    client = come()
    for number in range(1, results + 1):
        client.forward(number)
        client.hear("result", number)


def test_what_is_pushed_counts(shop: Shop, served: Callable[[Shop], Come]) -> None:
    """Also when who pushed it has left: it ends the session before memory does."""
    shop = replace(shop, under_way=UnderWay(16 << 10))
    Held(shop.under_way, bool).open()  # another client
    client = served(shop)()
    assert counted(shop.under_way) == 0
    for number in (1, 2):
        push(client, number)
        assert counted(shop.under_way) == number * (2048 + OBJECTS)
    push(client, 3)
    assert "of batches are under way, 0 MiB of all clients: too many" in client.refused()


def counted(under_way: UnderWay) -> int:
    return sum(under_way._held.values())


def push(client: Client, number: int) -> None:
    """Come, push a batch, and go."""
    client.say(invite=pb.Invite(part=0))
    key = client.hear("invited", number).key
    data = split(pb.InboxRequest(push=pb.Push(batch=number, values=bytes(2048))))
    with suppress(grpc.RpcError):  # the session may end of it
        list(client._channel.stream_stream("/ggrun.Worker/Inbox")(data, metadata=[(KEY, key)]))


def test_an_inbox_has_the_latest_few() -> None:
    under_way = UnderWay()
    held = Held(under_way, bool)
    held.open()
    held.most = 1 << 20
    inbox = Inbox(2, 100, held)
    for number in (1, 2, 3):
        inbox.put(pb.Push(batch=number, values=bytes([number] * 50)))
    assert counted(under_way) == 2 * (50 + OBJECTS)
    assert inbox.take(1, lambda: True) is None
    assert inbox.take(3, lambda: False) == bytes([3] * 50)
    with pytest.raises(ProtocolError, match="batch 2 was pushed twice"):
        inbox.put(pb.Push(batch=2))
    assert inbox.take(2, lambda: False) == bytes([2] * 50)
    assert counted(under_way) == 0


def test_who_finds_no_place_has_no_share(shop: Shop, served: Callable[[Shop], Come]) -> None:
    """Of what all clients together may have under way: it is that of those who are in."""
    come = served(shop)
    two = [come() for _ in range(2)]
    with pytest.raises(GgrunError, match="the worker has 2 clients"):
        Link(two[0].address, None)
    assert len(shop.under_way._held) == len(two)
    for client in two:
        client.leave()
    until(lambda: not shop.under_way._held, "the end of their shares")
