"""What clients have of a worker's memory, by devices and together."""

from dataclasses import replace

import pytest

from ggrun.devices.host_memory import HostMemory
from ggrun.plan.hardware import DeviceInfo
from ggrun.rpc import worker
from ggrun.rpc.ledger import Ledger, NoRoom, UnderWay

MIB = 1 << 20


def test_what_is_free_can_be_had() -> None:
    """Of each device at the same time: with --max-memory the first devices come first."""
    names = ("cuda:0", "cuda:1", "cpu")
    ledger = Ledger({"cuda:0": 6 * MIB, "cuda:1": 6 * MIB, "cpu": 20 * MIB}, 10 * MIB)
    assert [ledger.free(name) // MIB for name in names] == [6, 4, 0]
    first, second = {"cuda:0": 5 * MIB}, {"cuda:0": MIB, "cuda:1": 4 * MIB}
    ledger.take(first)
    assert {name: ledger.free(name) for name in names} == {**second, "cpu": 0}
    ledger.take(second)
    assert [ledger.free(name) for name in names] == [0, 0, 0]
    ledger.give(first)
    assert [ledger.free(name) // MIB for name in names] == [5, 0, 0]
    ledger.take({"cpu": 5 * MIB})  # a client's own plan may use any
    with pytest.raises(NoRoom, match=r"^cpu: 1 MiB are needed, 0 MiB are left \(--max-memory\)$"):
        ledger.take({"cpu": 1})


def test_all_of_every_device() -> None:
    ledger = Ledger({"cuda:0": 6 * MIB, "cpu": 20 * MIB})
    ledger.take({"cuda:0": 6 * MIB, "cpu": 20 * MIB})
    assert ledger.free("cpu") == 0


def test_no_room_by_a_byte() -> None:
    ledger = Ledger({"cpu:0": 2 * MIB})
    with pytest.raises(NoRoom, match=r"^cpu:0: 3 MiB are needed, 2 MiB are left of what this worker"):
        ledger.take({"cpu:0": 2 * MIB + 1})
    assert ledger.free("cpu:0") == 2 * MIB


def test_what_is_under_way_is_shared() -> None:
    """One client may have all that nobody else needs; who has more than its share makes way for others."""
    under_way = UnderWay(10 * MIB)
    for client in ("a", "b"):
        under_way.enter(client)
    under_way.add("a", 10 * MIB)
    under_way.check("a", 20 * MIB)
    with pytest.raises(NoRoom, match=r"^10 MiB of batches are under way: more than were announced$"):
        under_way.check("a", 9 * MIB)
    under_way.add("b", 5 * MIB)
    under_way.check("b", 20 * MIB)
    with pytest.raises(NoRoom, match=r"^10 MiB of batches are under way, 15 MiB of all clients: too many$"):
        under_way.check("a", 20 * MIB)
    under_way.add("a", -5 * MIB)
    under_way.check("a", 20 * MIB)
    under_way.leave("b")
    under_way.add("b", 99 * MIB)  # its last results, late
    under_way.add("a", 5 * MIB)
    under_way.check("a", 20 * MIB)


def test_what_others_have_taken_since_is_not_given() -> None:
    unused: dict[str, int] = {"cpu": 5 * MIB}
    ledger = Ledger({"cuda:0": 6 * MIB, "cpu": 20 * MIB}, None, unused.get)
    assert (ledger.free("cuda:0"), ledger.free("cpu")) == (6 * MIB, 5 * MIB)
    with pytest.raises(NoRoom, match=r"^cpu: 6 MiB are needed, 5 MiB are left of what this worker"):
        ledger.take({"cpu": 6 * MIB})
    ledger.take({"cpu": 5 * MIB})
    unused["cpu"] = -MIB
    assert ledger.free("cpu") == 0
    unused["cpu"] = 90 * MIB  # all is given back, but by clients
    assert ledger.free("cpu") == 15 * MIB


def test_a_worker_knows_what_is_left_of_the_hosts_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    available = 30 * MIB
    monkeypatch.setattr(worker, "host_memory", lambda: HostMemory(64 * MIB, available))
    cpu = DeviceInfo("cpu", 64 * MIB, 20 * MIB, 1e9, 1e9, 1e9)
    card, part = replace(cpu, name="cuda:0"), replace(cpu, name="cpu:0:5MB", free=5 * MIB)
    all_three, alone = worker._unused([cpu, card, part]), worker._unused([part])
    available = 14 * MIB  # somebody has taken 16 since; 5 were to stay free
    assert [all_three(name) for name in (cpu.name, card.name, part.name)] == [9 * MIB, None, 9 * MIB]
    assert alone(part.name) == 14 * MIB
