"""mDNS: a worker is found by its fingerprint, and only by who has joined it."""

import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from functools import partial
from typing import Any

import pytest

from ggrun import LLM
from ggrun.bundled import demo_model
from ggrun.errors import GgrunError, UsageError
from ggrun.rpc import discovery, workers
from ggrun.rpc.at_once import each, first
from ggrun.rpc.channel import check_answer
from ggrun.rpc.discovery import Announcement, discovered
from ggrun.rpc.keys import Key
from ggrun.rpc.link import Link
from ggrun.rpc.placed import RpcOptions
from ggrun.rpc.workers import connect
from tests.rpc.conftest import Start
from tests.rpc.processes import plan_of
from tests.rpc.proxy import Proxy
from tests.waiting import PATIENCE, until

KEY, OTHER = Key(bytes(32), bytes(range(32))), Key(bytes(32), bytes(range(1, 33)))
HERE = ["127.0.0.1"]


@pytest.fixture
def announce(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Announces one worker on loopback, where that goes."""
    with ExitStack() as stack:

        def one(addresses: list[str], port: int, key: Key) -> None:
            monkeypatch.setattr(discovery, "_addresses", lambda _: addresses)
            stack.enter_context(closing(Announcement("0.0.0.0", port, key.fingerprint, HERE)))

        try:
            one(["127.0.0.1"], 50999, KEY)
        except GgrunError as error:
            pytest.skip(f"no multicast here: {error}")
        if not any(discovered({"x": KEY}, 0.3, HERE) for _ in range(15)):
            pytest.skip("no multicast on this machine's loopback")
        stack.close()
        yield one


def test_a_worker_is_found_by_who_has_joined_it(
    announce: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    announce(["127.0.0.1"], 50999, KEY)
    known = {"old.example:1": KEY, "b:2": OTHER}
    until(lambda: discovered(known, 0.3, HERE) == {"127.0.0.1:50999": KEY})
    ports, joined = list[int](), discovery._joined
    monkeypatch.setattr(
        discovery, "_joined", lambda info, keys: ports.append(info.port) or joined(info, keys)
    )

    def is_seen_by_others() -> bool:
        assert discovered({"b:2": OTHER}, 0.3, HERE) == {}
        return 50999 in ports

    until(is_seen_by_others)


def test_a_worker_in_several_nets(
    announce: Callable[..., None], start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At its others is nobody, or somebody who does not answer, or somebody else: none is waited for."""

    def check(address: str, fingerprint: bytes, _: float) -> None:
        check_answer(address, fingerprint, PATIENCE)

    # To wait for them would be to find nothing in the time that there is for all.
    monkeypatch.setattr(discovery, "check_answer", check)
    monkeypatch.setattr(discovery, "first", lambda calls, _, drop: first(calls, PATIENCE, drop))
    worker = start()
    key = Key.parse(worker.key or "")
    with (
        closing(socket.create_server(("127.0.0.3", worker.port))),
        closing(Proxy(start(name="other").port, at=("127.0.0.4", worker.port))),
    ):
        announce(["127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.1"], worker.port, key)
        until(lambda: discovered({"spare:1": key}, 0.3, HERE) == {worker.address: key})


@pytest.fixture
def shouted() -> Iterator[int]:
    """Many names of workers, said again and again, behind which is nothing; and two that are no names."""
    from zeroconf import DNSOutgoing, DNSPointer, Zeroconf, const

    many, stop, service = 100, threading.Event(), "_ggrun._tcp.local."
    names = [f"x{i}.{service}" for i in range(many)] + [f"\x1b[2J.{service}", "elsewhere.local."]
    with closing(Zeroconf(HERE)) as stranger:

        def shout() -> None:
            while not stop.wait(0.2):
                out = DNSOutgoing(const._FLAGS_QR_RESPONSE | const._FLAGS_AA)
                for name in names:
                    pointer = DNSPointer(service, const._TYPE_PTR, const._CLASS_IN, 4500, name)
                    out.add_answer_at_time(pointer, 0)
                stranger.send(out)

        thread = threading.Thread(target=shout)
        thread.start()
        yield many
        stop.set()
        thread.join()


def test_names_that_anybody_announces(
    announce: Callable[..., None], shouted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are asked all at the same time, and not too many: the time for all is that for one."""
    announce(["127.0.0.1"], 50999, KEY)
    asked: list[int] = []

    def counted(calls: Sequence[Callable[[], Any]], *more: Any) -> list[Any]:
        asked.append(len(calls))
        return each(calls, *more)

    def look() -> list[int]:
        """How many names were asked, and how many workers were found."""
        asked.clear()
        discovered({"x": KEY}, 0.6, HERE)
        return asked

    monkeypatch.setattr(discovery, "each", counted)
    monkeypatch.setattr(discovery, "_ANSWER", 0.5)
    assert shouted > discovery._MOST_WORKERS
    until(lambda: look() == [discovery._MOST_WORKERS, 1], "what all of them say")
    monkeypatch.setattr(discovery, "_MOST_NAMES", 20)
    until(lambda: look()[0] in (19, 20), "what the first of them say")  # one of these may be the worker


def test_who_is_found_and_cannot_be_used_is_left_out(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Busy, not there, or with another token: each has a line. Who is named must be there."""
    good, busy = start(name="good"), start("--max-clients", "1", name="busy")
    wrong = start(name="wrong")
    keys = {worker.address: Key.parse(worker.key or "") for worker in (good, busy, wrong)}
    keys[wrong.address] = Key(bytes(32), keys[wrong.address].fingerprint)
    keys["127.0.0.1:1"] = KEY
    monkeypatch.setattr(discovery, "discovered", lambda _: keys)
    monkeypatch.setattr(workers, "known_workers", lambda: keys)
    told: list[str] = []
    with closing(Link(busy.address, keys[busy.address])):
        with closing(connect("auto", tell=told.append)) as found:
            assert [device.name for device in found.devices] == [good.device()]
            assert list(found.keys) == [good.address]
        with pytest.raises(GgrunError, match=f"^{busy.address}: the worker has 1 clients"):
            connect(f"{good.address},{busy.address}")
    assert [line.removesuffix(": going on without it") for line in told] == [
        f"{busy.address}: the worker has 1 clients, and takes no more (--max-clients)",
        f"{wrong.address}: wrong token: paste the join line that ggrun worker printed",
        "127.0.0.1:1: cannot be reached: Connection refused",
    ]


def test_after_a_loss_the_network_is_not_looked_into_again(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That would take seconds; who was found is asked."""
    two, looked, told = [start(name=name) for name in "ab"], list[object](), list[str]()
    keys = {worker.address: Key.parse(worker.key or "") for worker in two}

    def found(known: object) -> dict[str, Key]:
        looked.append(known)
        return keys

    monkeypatch.setattr(discovery, "discovered", found)
    plan = plan_of(demo_model(), *[(worker.device(), end) for worker, end in zip(two, (8, 16), strict=True)])
    rpc = RpcOptions("auto", tell=told.append)
    with LLM(demo_model(), n_ctx=64, threads=1, plan=plan, rpc=rpc) as llm:
        want = "".join(llm.generate("The king", temp=0.0, max_tokens=4))
        two[1].kill()
        assert "".join(llm.generate("The king", temp=0.0, max_tokens=4)) == want
        assert list(llm._placed._workers.hosts) == [two[0].address]
    assert len(looked) == 1
    assert [line.partition(": ")[0] for line in told] == [two[1].address]


@pytest.mark.parametrize("addresses", ["", ",", " , "])
def test_no_address_is_an_error(addresses: str) -> None:
    with pytest.raises(UsageError, match=r"^--rpc ' ?,? ?': no worker is named: give host:port,host:port or"):
        connect(addresses)


def test_auto_without_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "known_workers", dict)
    monkeypatch.setattr(discovery, "discovered", partial(discovered, seconds=0.1))
    with pytest.raises(GgrunError, match=r"^--rpc auto: no (worker that was joined|network)"):
        connect("auto")
