"""Sums by NCCL, a fake one that adds on the emulator: what is called, given up, and chosen."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ggrun import LLM, GgrunError
from ggrun.devices.all_reduce import open_all_reduce
from ggrun.devices.base import Device, Limits
from ggrun.devices.cpu import Cpu
from ggrun.devices.cuda import local, reductions, selftest, watch
from ggrun.devices.cuda import nccl as module
from ggrun.devices.cuda.cupy_driver import CupyDriver
from ggrun.devices.cuda.device import Cuda
from ggrun.devices.cuda.links import Numbers
from ggrun.devices.cuda.nccl import NcclExchange, version_text
from ggrun.devices.cuda.reductions import Reductions, Tried
from ggrun.devices.cuda.selftest import Check, Outcome
from ggrun.devices.exchange import Exchange, Part
from ggrun.gguf import GGUF
from ggrun.plan.hardware import Speeds
from tests.cuda.fake_nccl import FakeNccl, installed
from tests.cuda.models import cards, engine, logits
from tests.engine.test_peer import distance
from tests.kept import another_process
from tests.plans import Plans
from tests.tiny import Tiny
from tests.waiting import PATIENCE, until
from tools.cuda_emulator.driver import EmulatedDriver

TOKENS = [i * 7 % 36 for i in range(30)]


@pytest.fixture(autouse=True)
def nccl(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeNccl]:
    yield from installed(monkeypatch, tmp_path)


def real(n: int, direct: Callable[[Numbers], bool] = lambda pair: True) -> list[Cuda]:
    """Cards by CuPy, connected. direct: between which pairs directly, the smaller one first."""
    made = [Cuda(CupyDriver(i), f"cuda:{i}") for i in range(n)]
    for i, j in permutations(range(n), 2):
        made[i].connect(made[j], direct((min(i, j), max(i, j))))
    return made


def members(devices: Sequence[Device], rows: int = 20) -> list[tuple[Device, Any]]:
    return [(device, device.recorder(Limits(rows, 1, 1, 1))) for device in devices]


def told(work: Callable[[], Any]) -> str:
    """The one line that a user sees."""
    with pytest.raises(GgrunError) as error:
        work()
    assert "\n" not in str(error.value)
    return str(error.value)


# ---------------------------------------------------------------- what is called


@pytest.mark.parametrize("n", [2, 3, 4])
def test_sums(n: int, nccl: FakeNccl) -> None:
    """On all cards the same, near the true sum; who adds nothing has it too."""
    devices, rng = real(n), np.random.default_rng(n)
    made = members(devices)
    places = [ops.mailbox(8) for _, ops in made]
    way = NcclExchange(made)
    nccl.reductions.clear()
    for rows, empty in ((1, ()), (20, (n - 1,)), (3, (0,))):
        values = rng.standard_normal((n, rows, 8)).astype(np.float32)
        for device, place, part in zip(devices, places, values, strict=True):
            device.write(place, part)
        way.all_reduce([Part(place, i in empty) for i, place in enumerate(places)], rows)
        found = [np.empty((rows, 8), np.float32) for _ in devices]
        for device, place, out in zip(devices, places, found, strict=True):
            device.download(place, rows, out)
            device.stream.synchronize()
        given = [part for i, part in enumerate(values) if i not in empty]
        error = np.abs(found[0] - sum(part.astype(np.float64) for part in given))
        assert (error <= n * 2.0**-23 * np.abs(given).sum(0)).all()
        assert all(np.array_equal(found[0], other) for other in found)
    assert nccl.reductions == [8, 160, 24]


@pytest.mark.parametrize("kind", ["row 2", "row 3", "row inside layer"])
def test_models(kind: str, nccl: FakeNccl, tmp_path: Path) -> None:
    """Two sums a layer, with no host between them; the text is the one that a single card gives."""
    path = Tiny(layers=3).write(tmp_path / "model.gguf")
    want = logits(engine(path, cards(1)), TOKENS)
    devices = {device.name: device for device in real(4)}
    plan = Plans(GGUF(path), tuple(devices))[kind]
    split = engine(path, devices, plan, all_reduce="nccl", n_ubatch=8)
    nccl.reductions.clear()
    got = logits(split, TOKENS)
    assert len(nccl.reductions) == 2 * 3 * 4  # of four batches
    assert distance(got, want) <= 1e-6
    np.testing.assert_array_equal(got.argmax(1), want.argmax(1))


# ---------------------------------------------------------------- which way it goes


@pytest.mark.parametrize("n", [2, 3])
def test_it_uses_peer_access_where_copies_do(n: int, nccl: FakeNccl) -> None:
    """Where one pair of cards loses bytes in direct copies, or is told to go without them, NCCL does too."""
    NcclExchange(members(real(n, lambda pair: pair != (0, 1))))
    assert os.environ["NCCL_P2P_DISABLE"] == "1"
    assert nccl.p2p_disabled == ["1"]
    NcclExchange(members(real(n)))  # NCCL has read that, and goes the safe way to the end
    assert nccl.p2p_disabled == ["1", "1"]


def test_what_has_begun_directly_goes_on_so(nccl: FakeNccl, monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL reads its environment once, so where it is too late sums go by copies."""
    NcclExchange(members(real(2)))
    assert nccl.p2p_disabled == ["0"]
    line = told(lambda: NcclExchange(members(real(2, lambda pair: False))))
    assert line.startswith("NCCL copies directly between cards in this process already: --all-reduce copy")
    assert nccl.p2p_disabled == ["0"]
    monkeypatch.setattr(module, "_connected_directly", False)
    monkeypatch.setenv("NCCL_P2P_DISABLE", "1")
    for direct in (True, False):
        NcclExchange(members(real(2, lambda pair, direct=direct: direct)))  # type: ignore[misc]
    assert nccl.p2p_disabled == ["0", "1", "1"]


@pytest.mark.parametrize(("p2p", "good", "direct"), [("auto", True, True), ("auto", False, False),
                                                   ("on", False, True), ("off", True, False)])  # fmt: skip
def test_a_model_says_how(
    p2p: str, good: bool, direct: bool, nccl: FakeNccl, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """--p2p, and what was found of the cards, hold for NCCL and for its test; each is kept by itself."""
    monkeypatch.setattr(local, "_card_speeds", lambda *_: Speeds(1e9, 1e10, 1e10, 1e9))
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


# ---------------------------------------------------------------- where it cannot be used


def test_it_is_not_installed(nccl: FakeNccl, monkeypatch: pytest.MonkeyPatch) -> None:
    made = members(real(2))
    nccl.available = False
    assert told(lambda: NcclExchange(made)).startswith("NCCL is not installed: pip install nvidia-nccl-cu13")
    monkeypatch.setitem(sys.modules, "cupy.cuda.nccl", None)  # type: ignore[arg-type]
    assert told(lambda: NcclExchange(made)).startswith("NCCL is not installed")


def test_it_refuses(nccl: FakeNccl) -> None:
    nccl.faults.append("refuses")
    line = told(lambda: NcclExchange(members(real(2))))
    assert line == "NCCL over cuda:0, cuda:1: NCCL_ERROR_INVALID_USAGE: invalid usage"
    nccl.faults += [None, None, "refuses"]
    made = members(real(2))
    way = NcclExchange(made)
    parts = [Part(ops.mailbox(8)) for _, ops in made]
    line = told(lambda: way.all_reduce(parts, 1))
    assert line.endswith("invalid usage: --all-reduce copy sums without it")
    nccl.broken = True
    assert told(lambda: NcclExchange(made)).endswith("NCCL_ERROR_SYSTEM_ERROR: unhandled system error")


def test_a_card_that_comes_twice(nccl: FakeNccl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NCCL_MULTI_RANK_GPU_ENABLE", raising=False)
    one, again = Cuda(CupyDriver(0), "cuda:0"), Cuda(CupyDriver(0), "again")
    twins = members([one, again])
    assert told(lambda: NcclExchange(twins)) == "NCCL 2.27.3 takes each card once, 2.30 may take one twice"
    nccl._version = 23003
    assert "without NCCL_MULTI_RANK_GPU_ENABLE=1 in" in told(lambda: NcclExchange(twins))
    monkeypatch.setenv("NCCL_MULTI_RANK_GPU_ENABLE", "1")
    NcclExchange(twins)


def test_devices_that_are_no_cards() -> None:
    cpu = Cpu(1)
    mixed = members([*real(1), cpu])
    line = told(lambda: open_all_reduce(mixed, 8, "nccl"))
    assert line == "NCCL sums over CUDA devices alone, cpu is none"
    emulated = members([Cuda(EmulatedDriver(), f"cuda:{i}") for i in range(2)])
    assert told(lambda: NcclExchange(emulated)) == "NCCL needs real cards, cuda:0 is emulated"
    assert isinstance(open_all_reduce(mixed, 8), Exchange)
    assert isinstance(open_all_reduce(emulated, 8), Exchange)
    cpu.close()


@pytest.mark.parametrize(
    ("number", "text"), [(22703, "2.27.3"), (21000, "2.10.0"), (2708, "2.7.8"), (23011, "2.30.11")]
)
def test_versions(number: int, text: str) -> None:
    assert version_text(number) == text


# ---------------------------------------------------------------- what hangs


@pytest.mark.parametrize(("faults", "aborted"), [(["blocks"], []), ([None, "hangs"], [0, 1])])
def test_it_does_not_start(
    faults: list[str | None], aborted: list[int], nccl: FakeNccl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is connected is aborted, so that the cards' streams go on: sums by copies work then."""

    def since_it_hangs(seconds: float, work: Callable[[], None], what: str) -> None:
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        assert nccl.hanging.wait(PATIENCE)
        watch.within(seconds, thread.join, what)

    monkeypatch.setattr(module, "within", since_it_hangs)
    monkeypatch.setattr(module, "START", 0.2)
    nccl.faults += faults
    devices = real(2)
    assert told(lambda: NcclExchange(members(devices))) == "NCCL did not connect the cards in 0 s"
    assert nccl.aborted == aborted
    for device in devices:
        device.stream.synchronize()
    nccl.held.set()  # what comes too late is aborted too, and uses the streams no more
    until(lambda: len(nccl.aborted) >= 2)
    assert nccl.aborted == [0, 1]
    assert len(nccl.reductions) == len(aborted) // 2


@pytest.mark.parametrize("size", [1000, 1])
def test_a_reduction_that_hangs_is_given_up(
    size: int, nccl: FakeNccl, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The run ends with a line that says how to go on, and the next one sums by copies."""
    monkeypatch.setattr(watch, "LOOK", 0.05)
    monkeypatch.setattr(watch, "LONGEST", 0.3)
    path = Tiny(layers=3).write(tmp_path / "model.gguf")
    devices = {device.name: device for device in real(4)}
    split = engine(path, devices, Plans(GGUF(path), tuple(devices))["row 2"], all_reduce="nccl")
    want = logits(split, TOKENS)
    nccl.faults += [None] * (6 if size == 1 else 0)  # the first token's come one by one
    nccl.faults += [None, "hangs"]
    line = told(lambda: logits(split, TOKENS, size))
    assert line.startswith("NCCL: a reduction did not end in 0 s: it was given up; --all-reduce copy")
    assert nccl.aborted == [0, 1]
    nccl.reductions.clear()
    assert distance(logits(split, TOKENS, size), want) <= 1e-6
    assert nccl.reductions == []


def test_waiting_for_others_is_no_hang(nccl: FakeNccl, monkeypatch: pytest.MonkeyPatch) -> None:
    """A card that has not come to the sum yet is not NCCL's fault, and may take as long as it does."""
    monkeypatch.setattr(watch, "LOOK", 0.02)
    monkeypatch.setattr(watch, "LONGEST", 0.1)
    devices = real(2)
    made = members(devices)
    way = NcclExchange(made)
    streams = [device.driver.stream.raw.ptr for device in devices]  # type: ignore[attr-defined]
    nccl.cupy.hold(streams[1:], nccl.held)
    nccl.faults.append("hangs")
    way.all_reduce([Part(ops.mailbox(8)) for _, ops in made], 1)
    time.sleep(0.5)
    assert way.lost is None
    nccl.held.set()


# ---------------------------------------------------------------- what is chosen


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
    another_process()
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


def test_why_it_is_not_used(
    nccl: FakeNccl, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes(monkeypatch, [[256, 1.0]], "no end after 5 s")
    ways(nccl, [1])
    assert capsys.readouterr().err == (
        "ggrun: testing how cuda:0, cuda:1 sum what they have: once, some seconds, 10 more if cards hang\n"
        "ggrun: cuda:0, cuda:1: sums go by copies, without NCCL (no end after 5 s)\n"
    )
    another_process()
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
    another_process()
    outcomes(monkeypatch, "no room", "no room", settled=False)
    reductions.reductions_of([0, 1], [(0, 1)], anew=True)
    assert ways(nccl, [1]) == [False]
    another_process()
    made = outcomes(monkeypatch, "no room", "no room", settled=False)
    ways(nccl, [1])
    assert len(made) == 2  # what could not be tested is not kept


def test_what_is_kept_may_be_anything(nccl: FakeNccl) -> None:
    found = Reductions(Tried(((256, 1.0), (1024, 2.5))), Tried(reason="none"))
    assert Reductions.from_json(found.to_json()) == found
    for text in ("", "[]", "7", '{"copy": 1}', found.to_json().replace("2.5", "-1"), "[" * 100_000):
        with pytest.raises(reductions.NONSENSE):
            Reductions.from_json(text)
