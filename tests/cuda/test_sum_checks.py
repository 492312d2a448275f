"""What the self-test looks at of sums over cards: that they are right, and the same on all cards, twice."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ggrun import GgrunError
from ggrun.devices import exchange
from ggrun.devices.cuda import selftest, sum_checks
from ggrun.devices.cuda.cupy_driver import CupyDriver
from ggrun.devices.cuda.reductions import Tried
from ggrun.devices.cuda.selftest import Check
from ggrun.devices.cuda.sum_checks import check_reductions, try_copy, try_nccl
from tests.cuda.fake_nccl import FakeNccl, installed
from tests.cuda.limits import limit_checks
from tools.cuda_emulator.driver import EmulatedDriver


@pytest.fixture(autouse=True)
def nccl(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeNccl]:
    yield from installed(monkeypatch, tmp_path)


@pytest.mark.parametrize("n", [2, 3])
def test_good_cards_pass(n: int, nccl: FakeNccl, monkeypatch: pytest.MonkeyPatch) -> None:
    # Few enough for the emulator, and worth sharing.
    monkeypatch.setattr(sum_checks, "SIZES", (4096, 8192))
    monkeypatch.setattr(sum_checks, "_CHECKED", (1, 30))
    monkeypatch.setattr(sum_checks, "_WIDTH", 64)
    monkeypatch.setattr(exchange, "_COPY", 1000)
    drivers = [CupyDriver(i) for i in range(n)]
    for way, wire in (("copy", "f32"), ("copy", "bf16"), ("nccl", "f32")):
        check_reductions(drivers, way, [(0, 1)], wire)
    assert nccl.cupy.reached == {(0, 1), (1, 0)}
    for found in (try_copy(drivers, [(0, 1)]), try_nccl(drivers, [(0, 1)])):
        assert Tried.of(found).seconds(4096) > 0
    with pytest.raises(GgrunError, match="emulated"):
        check_reductions([EmulatedDriver(), EmulatedDriver()], "nccl", [])


@pytest.mark.parametrize(
    ("opener", "copy"),
    [("works", ""), ("loses_bytes", "sums of 1 rows are"), ("never_receives", "no end after 1 s")],
)
def test_the_self_test_tries_sums(opener: str, copy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a real process, on emulated cards; NCCL comes last, and is tried whatever became of copies."""
    limit_checks(monkeypatch, 60.0)
    if opener == "never_receives":
        limit_checks(monkeypatch, 1.0, "sums by copies")
    checks = [Check(name, (0, 1, 2), ([(0, 1)],)) for name in ("sums by copies", "sums by NCCL")]
    by_copies, by_nccl = selftest.run(checks, f"tests.cuda.openers:{opener}")
    assert by_nccl.reason == "NCCL needs real cards, cuda:0 is emulated"
    if copy:
        assert by_copies.reason.startswith(copy)
    else:
        assert [size for size, _ in Tried.of(by_copies.result).timed] == [4096, 8192]
    assert by_copies.settled
    assert by_nccl.settled


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("wrong", "sums of 1 rows are wrong"),
        ("differs", "sums of 1 rows are not the same on all cards"),
        ("changes", "sums of 1 rows are not the same every time"),
    ],
)
def test_bad_sums_are_seen(fault: str, words: str, nccl: FakeNccl) -> None:
    nccl.faults += [None, None, *[fault] * 4]
    with pytest.raises(GgrunError, match=f"^{words}$"):
        check_reductions([CupyDriver(0), CupyDriver(1)], "nccl", [(0, 1)])
