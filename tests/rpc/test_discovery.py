"""mDNS: a worker is found by its fingerprint, and only by who has joined it."""

import socket
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from ggrun.errors import GgrunError, UsageError
from ggrun.rpc import discovery, workers
from ggrun.rpc.discovery import Announcement, discovered
from ggrun.rpc.keys import Key
from ggrun.rpc.link import Link
from ggrun.rpc.workers import connect
from tests.rpc.conftest import Start

KEY, OTHER = Key(bytes(32), bytes(range(32))), Key(bytes(32), bytes(range(1, 33)))
HERE = ["127.0.0.1"]


@pytest.fixture
def announced() -> Iterator[None]:
    try:
        announcement = Announcement("127.0.0.1", 50999, KEY.fingerprint, HERE)
    except GgrunError as error:
        pytest.skip(f"no multicast here: {error}")
    if not discovered({"x": KEY}, 1.0, HERE):
        announcement.close()
        pytest.skip("no multicast on this machine's loopback")
    yield
    announcement.close()


@pytest.mark.usefixtures("announced")
def test_a_worker_is_found_by_who_has_joined_it() -> None:
    assert discovered({"old.example:1": KEY, "b:2": OTHER}, 1.0, HERE) == {"127.0.0.1:50999": KEY}
    assert discovered({"b:2": OTHER}, 1.0, HERE) == {}


@pytest.mark.usefixtures("announced")
@pytest.mark.parametrize("dead", [["127.0.0.2"], ["127.0.0.2", "127.0.0.3"]])
def test_a_worker_in_several_nets(start: Start, dead: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is at the first of its addresses, or somebody who does not answer, or somebody else."""
    worker, other = start(name="worker"), start("-H", "127.0.0.2", name="other", join=False)
    key = Key.parse(worker.key or "")
    silent = socket.create_server(("127.0.0.3", worker.port), backlog=1)
    monkeypatch.setattr(discovery, "_addresses", lambda _: ["127.0.0.4", *dead, "127.0.0.1"])
    announced = Announcement("0.0.0.0", worker.port, key.fingerprint, HERE)
    with closing(silent), closing(announced):
        begun = time.monotonic()
        assert discovered({"spare:1": key}, 1.0, HERE) == {worker.address: key}
        assert time.monotonic() - begun < 2.0
    assert other.port


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
        f"{wrong.address}: wrong token: paste the join line that ggrun worker printed there",
        "127.0.0.1:1: cannot be reached: Connection refused",
    ]


@pytest.mark.parametrize("addresses", ["", ",", " , "])
def test_no_address_is_an_error(addresses: str) -> None:
    with pytest.raises(UsageError, match=r"^--rpc ' ?,? ?': no worker is named: give host:port,host:port or"):
        connect(addresses)


def test_auto_without_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "known_workers", dict)
    with pytest.raises(GgrunError, match=r"^--rpc auto: no (worker that was joined|network)"):
        connect("auto")
