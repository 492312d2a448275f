"""Which way cards sum: tested in a process of its own, kept, and the faster one for the size."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ggrun import LLM, GgrunError
from ggrun.devices import exchange, local
from ggrun.devices.all_reduce import open_all_reduce
from ggrun.devices.cuda import links, reductions, selftest, sum_checks
from ggrun.devices.cuda.cupy_driver import CupyDriver
from ggrun.devices.cuda.reductions import Reductions, Tried
from ggrun.devices.cuda.selftest import Check, Outcome
from ggrun.devices.cuda.sum_checks import check_reductions, try_copy, try_nccl
from ggrun.devices.exchange import Exchange, Part
from ggrun.plan.hardware import Speeds
from tests.cuda.fake_nccl import FakeNccl
from tests.cuda.limits import limit_checks
from tests.cuda.test_nccl import members, real, told
from tests.tiny import Tiny
from tools.cuda_emulator.driver import EmulatedDriver

pytestmark = pytest.mark.usefixtures("nccl")


def outcomes(patch: pytest.MonkeyPatch, copy: Any, by_nccl: Any, settled: bool = True) -> list[Check]:
    """Let the self-test find timings, or reasons; the checks that were made."""
    made: list[Check] = []

    def run(checks: Sequence[Check], opener: str) -> list[Outcome]:
        made.extend(checks)
        found = zip(checks, (copy, by_nccl), strict=True)
        return [
            Outcome(check, reason=what, settled=settled) if isinstance(what, str) else Outcome(check, what)
            for check, what in found
        ]

    patch.setattr(selftest, "run", run)
    return made


def ways(nccl: FakeNccl, rows: Sequence[int]) -> list[bool]:
    """Whether sums of so many rows of 256 bytes go by NCCL."""
    made = members(real(2))
    way = open_all_reduce(made, 64)
    parts = [Part(ops.mailbox(64)) for _, ops in made]
    found = []
    for n in rows:
        nccl.reductions.clear()
        way.all_reduce(parts, n)
        found.append(bool(nccl.reductions))
    return found


@pytest.mark.parametrize(
    ("copy", "by_nccl", "expected"),
    [
        ([[256, 1.0], [1024, 2.0]], [[256, 2.0], [1024, 1.0]], [False, False, True, True]),
        ([[256, 2.0], [1024, 1.0]], [[256, 1.0], [1024, 2.0]], [True, True, False, False]),
        ([[256, 1.0], [1024, 1.0]], [[256, 2.0], [1024, 2.0]], [False] * 4),
        ("bytes came wrong", [[256, 2.0]], [True] * 4),
        ([[256, 1.0]], "no end after 5 s", [False] * 4),
    ],
)
def test_the_faster_way_for_the_size(
    copy: Any, by_nccl: Any, expected: list[bool], nccl: FakeNccl, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = outcomes(monkeypatch, copy, by_nccl)
    assert ways(nccl, [1, 3, 4, 20]) == expected
    assert made == [Check(name, (0, 1), (((0, 1),),)) for name in ("sums by copies", "sums by NCCL")]
    reductions._KEPT._found.clear()  # as in a process that begins
    assert ways(nccl, [1, 3, 4, 20]) == expected
    assert len(made) == 2  # it was kept
    nccl._version += 1
    ways(nccl, [1])
    assert len(made) == 4  # another NCCL


def test_bfloat16_goes_by_copies(nccl: FakeNccl, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was found of float32; nothing has to be tested for it."""
    made = outcomes(monkeypatch, [[256, 2.0]], [[256, 1.0]])
    assert isinstance(open_all_reduce(members(real(2)), 64, wire="bf16"), Exchange)
    assert made == []


@pytest.mark.parametrize(("p2p", "good", "direct"), [("auto", True, True), ("auto", False, False),
                                                   ("on", False, True), ("off", True, False)])  # fmt: skip
def test_a_model_says_how(
    p2p: str, good: bool, direct: bool, nccl: FakeNccl, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """--p2p, and what was found of the cards, hold for NCCL and for its test; each is kept by itself."""
    monkeypatch.setattr(local, "_card_speeds", lambda *_: Speeds(1e9, 1e10, 1e10, 1e9))
    monkeypatch.setattr(links._KEPT, "_found", {})
    made: list[Check] = []
    speeds, sums = [{"bandwidth": 1e9, "latency": 1e-5}] * 2, {"sums by copies": 1.0, "sums by NCCL": 0.5}

    def run(checks: Sequence[Check], opener: str) -> list[Outcome]:
        made.extend(checks)
        bad = "" if good else "64 bytes came wrong"
        return [
            Outcome(check, [[256, sums[check.name]]]) if check.name in sums
            else Outcome(check, speeds, bad if check.name == "direct copies" else "")
            for check in checks
        ]  # fmt: skip

    monkeypatch.setattr(selftest, "run", run)
    path = Tiny(layers=2).write(tmp_path / "model.gguf")
    options: dict[str, Any] = {"split_mode": "row", "tensor_split": (1.0, 1.0), "n_ctx": 64, "p2p": p2p}
    with LLM(path, devices="cuda:0:96MB,cuda:1:96MB", **options) as llm:
        nccl.reductions.clear()
        llm.logits([1, 2, 3])
    assert nccl.reductions
    assert nccl.p2p_disabled == ["0" if direct else "1"]
    pairs = ((0, 1),) if direct else ()
    assert {check.more for check in made if check.name in sums} == {(pairs,)}
    another = [] if direct else [(0, 1)]
    made.clear()
    reductions.reductions_of([0, 1], list(pairs))
    assert made == []
    reductions.reductions_of([0, 1], another)
    assert len(made) == 2


def test_why_it_is_not_used(
    nccl: FakeNccl, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes(monkeypatch, [[256, 1.0]], "no end after 5 s")
    ways(nccl, [1])
    assert capsys.readouterr().err == (
        "ggrun: testing how cuda:0, cuda:1 sum what they have: once, some seconds, 52 at the most\n"
        "ggrun: cuda:0, cuda:1: sums go by copies, without NCCL (no end after 5 s)\n"
    )
    reductions._KEPT._found.clear()
    outcomes(monkeypatch, [[256, 2.0]], [[256, 1.0]])
    assert ways(nccl, [1]) == [False]
    reductions.reductions_of([0, 1], [(0, 1)], anew=True)
    nccl.faults.append("refuses")
    assert ways(nccl, [1]) == [False]
    assert "sums over cards go by copies: NCCL over cuda:0, cuda:1: NCCL_ERROR" in capsys.readouterr().err


def test_cards_that_cannot_sum(nccl: FakeNccl, monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes(monkeypatch, "sums of 7 rows are wrong", "it died of SIGSEGV")
    assert told(lambda: ways(nccl, [1])) == (
        "cards 0, 1 cannot share rows: sums by copies: sums of 7 rows are wrong; "
        "by NCCL: it died of SIGSEGV: use -sm layer; ggrun doctor tests them again"
    )
    reductions._KEPT._found.clear()
    outcomes(monkeypatch, "no room", "no room", settled=False)
    reductions.reductions_of([0, 1], [(0, 1)], anew=True)
    assert ways(nccl, [1]) == [False]
    reductions._KEPT._found.clear()
    made = outcomes(monkeypatch, "no room", "no room", settled=False)
    ways(nccl, [1])
    assert len(made) == 2  # what could not be tested is not kept


def test_what_is_kept_may_be_anything(nccl: FakeNccl) -> None:
    found = Reductions(Tried(((256, 1.0), (1024, 2.5))), Tried(reason="none"))
    assert Reductions.from_json(found.to_json()) == found
    for text in ("", "[]", "7", '{"copy": 1}', found.to_json().replace("2.5", "-1"), "[" * 100_000):
        with pytest.raises(reductions.NONSENSE):
            Reductions.from_json(text)


# ---------------------------------------------------------------- what the self-test looks at


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
    [("works", ""), ("loses_bytes", "sums of 1 rows are"), ("never_receives", "no end after 5 s")],
)
def test_the_self_test_tries_sums(opener: str, copy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a real process, on emulated cards; NCCL comes last, and is tried whatever became of copies."""
    limit_checks(monkeypatch, 5.0 if opener == "never_receives" else 60.0)
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
        ("changes", "sums of 1 rows are not the same the second time"),
    ],
)
def test_bad_sums_are_seen(fault: str, words: str, nccl: FakeNccl) -> None:
    nccl.faults += [None, None, *[fault] * 4]
    assert told(lambda: check_reductions([CupyDriver(0), CupyDriver(1)], "nccl", [(0, 1)])) == words
