"""Copies between cards: direct, and through the host's memory in pieces that overlap."""

import gc
from collections.abc import Callable
from pathlib import Path
from weakref import WeakSet

import numpy as np
import pytest

from ggrun import GgrunError
from ggrun.devices.cuda import relay
from ggrun.devices.cuda.relay import BUFFERS, Relay
from ggrun.devices.late import Schedule
from ggrun.gguf import GGUF
from tests.cuda.models import cards, engine, logits
from tests.plans import Plans
from tests.thinned import diagonal
from tests.tiny import Tiny
from tests.waits import left_out, lines_that_wait
from tools.cuda_emulator.driver import COPY, EmulatedDriver, Peers
from tools.cuda_emulator.kernels import KernelError
from tools.cuda_emulator.memory import Memory

SIZES = (1, 99, 100, 101, 400, 401, 1000)
TOKENS = [i * 7 % 36 for i in range(30)]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "PIECE", 100)


def pair(seed: int = 0, peers: Peers = Peers.WORK) -> tuple[EmulatedDriver, EmulatedDriver]:
    schedule = Schedule(seed)
    a, b = (EmulatedDriver(schedule=schedule, name=name, peers=peers) for name in ("a", "b"))
    return a, b


def sent(seed: int) -> bool:
    """Whether the taker gets what the giver had, whatever the giver enqueues behind each copy."""
    a, b = pair(seed)
    way, good = Relay(a, b), True
    source, target, back = (driver.allocate(1000) for driver in (a, b, b))
    values = np.random.default_rng(1).integers(0, 256, (len(SIZES) + 1, 1000), np.uint8)
    a.upload(source.address, values[0])
    for i, size in enumerate(SIZES):
        way.copy(target.address, source.address, size)
        a.upload(source.address, values[i + 1])  # comes after the copy, by the order of the stream alone
        b.stream.wait(a.stream.record())
        b.copy(back.address, target.address, 1000)
        got = np.empty(size, np.uint8)
        b.download(got, back.address)
        free = b.stream.record()
        b.stream.synchronize()
        good = good and np.array_equal(got, values[i, :size])
        a.stream.wait(free)
    return good


def test_a_copy_through_the_host_is_in_the_order_of_its_giver() -> None:
    assert all(sent(seed) for seed in range(20))


def test_each_wait_is_needed() -> None:
    ours = [line for line in lines_that_wait(lambda: sent(0)) if line[0] == "relay.py"]
    assert len(ours) == 3  # for a buffer, for a piece, for the last one
    for line in ours:
        with left_out(line):
            assert not all(sent(seed) for seed in range(30)), f"{line} is not needed"


def test_both_halves_overlap() -> None:
    a, b = pair()
    way, source, target = Relay(a, b), a.allocate(10_000), b.allocate(10_000)
    a.fill(source.address, 1, 10_000)
    a.stream.synchronize()
    begin = a.stream.time
    way.copy(target.address, source.address, 10_000)
    a.stream.synchronize()
    assert a.stream.time - begin == pytest.approx((100 + 1) * COPY)  # and not 200


def test_the_host_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = pair()
    way, source, target = Relay(a, b), a.allocate(10_000), b.allocate(10_000)
    with monkeypatch.context() as patch:
        patch.setattr(Schedule, "run_until", lambda self, done: pytest.fail("the host waits"))
        way.copy(target.address, source.address, 10_000)
    a.stream.synchronize()


def test_what_comes_after_an_error_is_whole() -> None:
    """The second stream of the taker forgets errors when the taker does."""
    a, b = pair()
    source, target = a.allocate(1000), b.allocate(1000)
    way, got = Relay(a, b), np.empty(1000, np.uint8)

    def fail() -> None:
        raise GgrunError("no more")

    a.stream.enqueue(fail)
    way.copy(target.address, source.address, 1000)
    with pytest.raises(GgrunError, match="no more"):
        a.stream.synchronize()
    for card in (a, b):
        card.stream.abandon()
    a.fill(source.address, 7, 1000)
    way.copy(target.address, source.address, 1000)
    a.stream.synchronize()
    b.download(got, target.address)
    b.stream.synchronize()
    assert (got == 7).all()


def test_buffers_are_used_again_and_go_with_the_way() -> None:
    a, b = pair()
    taken = list[int]()
    there = WeakSet[Memory]()
    real = a.allocate_on_host

    def allocate(nbytes: int) -> Memory:
        taken.append(nbytes)
        there.add(memory := real(nbytes))
        return memory

    a.allocate_on_host = allocate  # type: ignore[method-assign]
    way, source, target = Relay(a, b), a.allocate(5000), b.allocate(5000)
    assert taken == []
    for _ in range(3):
        way.copy(target.address, source.address, 5000)
    assert taken == [100] * BUFFERS
    a.stream.synchronize()
    assert len(there) == BUFFERS
    del way
    gc.collect()
    assert len(there) == 0


@pytest.mark.parametrize(("kind", "seed"), diagonal(["layer 2", "row 3", "everything"], range(2)))
def test_models_on_cards_that_copy_through_the_host(
    kind: str, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "PIECE", 500)
    path = Tiny(layers=3).write(tmp_path / "model.gguf")
    found = []
    for direct in (True, False):
        devices = cards(4, seed=seed, direct=direct)
        split = engine(path, devices, Plans(GGUF(path), tuple(devices))[kind], n_ubatch=8)
        found.append(np.concatenate([logits(split, TOKENS), logits(split, TOKENS, 1)]))
    np.testing.assert_array_equal(*found)


# ---------------------------------------------------------------- peer access, emulated


def test_a_direct_copy_needs_peer_access() -> None:
    a, b = pair()
    source, target = a.allocate(10), b.allocate(10)
    with pytest.raises(KernelError, match="without peer access"):
        a.copy(target.address, source.address, 10, b)
    a.reach(b)
    a.copy(target.address, source.address, 10, b)
    a.copy(source.address, source.address, 10, a)
    a.stream.synchronize()


def test_cards_without_peer_access() -> None:
    (a, b), devices = pair(peers=Peers.NONE), cards(2)
    assert (a.can_reach(a), a.can_reach(b)) == (True, False)
    with pytest.raises(GgrunError, match="no peer access"):
        a.reach(b)
    one, other = devices.values()
    one.driver = a  # type: ignore[attr-defined]
    with pytest.raises(GgrunError, match="no peer access"):
        one.connect(other, direct=True)  # type: ignore[attr-defined]


def settle(*drivers: EmulatedDriver) -> None:
    for driver in drivers:
        driver.stream.synchronize()
        driver.transfers.synchronize()


def test_memory_of_one_card_is_out_of_reach_for_the_other() -> None:
    a, b = pair()
    of_a, of_b, pinned = a.allocate(10), b.allocate(10), a.allocate_on_host(10)
    wrong: list[Callable[[], None]] = [
        lambda: b.receive(of_a.address, pinned.address, 10),
        lambda: b.receive(of_b.address, of_a.address, 10),
        lambda: a.copy(of_b.address, of_a.address, 10),
    ]
    for work in wrong:
        work()
        with pytest.raises(KernelError, match="in no "):
            settle(a, b)
