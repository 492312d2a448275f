"""How cards copy to each other: tested once, kept, chosen by --p2p, told to the planner."""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from ggrun import LLM, GgrunError, UsageError
from ggrun.bundled import demo_model
from ggrun.devices import open_devices
from ggrun.devices.cuda import found, links, local, selftest
from ggrun.devices.cuda.found import Cards
from ggrun.devices.cuda.links import Pair, Way, known_pairs, pairs_of
from ggrun.devices.cuda.selftest import Check, Outcome
from ggrun.devices.local import local_devices, named_devices
from ggrun.plan.hardware import Link, Speeds, card_info
from tests.cuda.fake_cupy import FakeCupy
from tests.cuda.limits import limit_checks
from tests.engine.test_peer import distance
from tests.kept import another_process, nothing_kept
from tests.tiny import Tiny

PAIR = Pair((Way(2e10, 1e-5), Way(3e10, 1e-5)), (Way(1e10, 3e-5), Way(1.5e10, 3e-5)))


@pytest.fixture(autouse=True)
def cupy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeCupy]:
    """A machine with three cards, of which nothing is known."""
    fake = FakeCupy(cards=3)
    monkeypatch.setitem(sys.modules, "cupy", fake)  # type: ignore[arg-type]
    nothing_kept(monkeypatch, tmp_path)
    limit_checks(monkeypatch, 60.0)
    Cards.found.cache_clear()
    yield fake
    Cards.found.cache_clear()


def use(opener: str, patch: pytest.MonkeyPatch) -> None:
    """Let the self-test's process open such cards."""
    patch.setattr(selftest, "OPEN", f"tests.cuda.openers:{opener}")


def answer(patch: pytest.MonkeyPatch, **reasons: str) -> list[Check]:
    """Let checks fail for these reasons, by `direct` and `staged`, or pass; the checks that were made."""
    made: list[Check] = []
    speeds = [{"bandwidth": 1e9, "latency": 1e-5}] * 2

    def run(checks: Sequence[Check], opener: str) -> list[Outcome]:
        made.extend(checks)
        whys = [reasons.get("direct" if check.name == "direct copies" else "staged", "") for check in checks]
        return [Outcome(check, None if why else speeds, why) for check, why in zip(checks, whys, strict=True)]

    patch.setattr(selftest, "run", run)
    return made


def test_cards_are_tested_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    use("works", monkeypatch)
    (pair,) = pairs_of([1, 0]).values()
    assert (pair.direct is None, pair.staged is None, pair.reason, pair.broken) == (False, False, "", "")
    err = capsys.readouterr().err
    how = "once, some seconds, 1000 more if cards hang"
    assert err == f"ggrun: testing how cuda:0, cuda:1 copy to each other: {how}\n"
    another_process()
    made = answer(monkeypatch)
    assert pairs_of([0, 1]) == known_pairs([0, 1]) == {(0, 1): pair}
    assert made == []
    assert capsys.readouterr().err == ""
    assert pairs_of([0, 1, 2]).keys() == {(0, 1), (0, 2), (1, 2)}
    assert {check.cards for check in made} == {(0, 2), (1, 2)}
    made.clear()
    pairs_of([0, 1], anew=True)
    assert {check.name for check in made} == {"direct copies", "copies through the host"}
    another_process()
    assert known_pairs([0, 1]) != {(0, 1): pair}
    assert pairs_of([]) == pairs_of([2]) == {}


def test_copies_that_come_wrong_go_through_the_host(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cupy: FakeCupy
) -> None:
    use("corrupts", monkeypatch)
    (pair,) = pairs_of([0, 1]).values()
    assert pair.direct is None
    assert pair.staged
    why = "came wrong, and no error was reported"
    assert why in pair.reason
    assert f"cuda:0 and cuda:1: copies go through the host's memory and not directly ({pair.reason})" in (
        capsys.readouterr().err
    )
    for device in open_devices(["cuda:0", "cuda:1"]).values():
        device.close()
    assert cupy.reached == set()


@pytest.mark.parametrize("mode", ["layer", "row"])
def test_a_model_on_cards_whose_direct_copies_lose_bytes(
    mode: str, monkeypatch: pytest.MonkeyPatch, cupy: FakeCupy, tmp_path: Path
) -> None:
    monkeypatch.setattr(local, "_card_speeds", lambda *_: Speeds(1e9, 1e10, 1e10, 1e9))
    path, tokens = Tiny(layers=2).write(tmp_path / "model.gguf"), [i * 7 % 36 for i in range(20)]
    with LLM(path, n_ctx=64, devices="cpu", threads=1) as cpu:
        want = cpu.logits(tokens)
    options: dict[str, Any] = {"split_mode": mode, "tensor_split": (1.0, 1.0), "n_ctx": 64}
    for p2p, opener, direct in (("auto", "corrupts", False), ("on", "works", True)):
        use(opener, monkeypatch)  # sums are tested as copies go
        with LLM(path, devices="cuda:0:96MB,cuda:1:96MB", p2p=p2p, **options) as llm:
            assert distance(llm.logits(tokens), want) <= 1e-6
        assert bool(cupy.copies) == direct


@pytest.mark.parametrize("change", ["driver", "card", "version", "machine"])
def test_another_machine_is_tested_again(
    change: str, monkeypatch: pytest.MonkeyPatch, cupy: FakeCupy
) -> None:
    made = answer(monkeypatch)
    pairs_of([0, 1])
    another_process()
    if change == "driver":
        monkeypatch.setattr(found, "nvidia_driver", lambda: "999.1")
    elif change == "card":
        monkeypatch.setattr(cupy, "deviceGetPCIBusId", lambda index: "another slot")
    elif change == "version":
        monkeypatch.setattr(found, "__version__", "99")
    else:
        monkeypatch.setattr(found, "_machine", lambda: ["iommu=off"])
    assert known_pairs([0, 1]) == {}
    pairs_of([0, 1])
    assert len(made) == 4


def test_what_could_not_be_tested_is_tested_by_the_next_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use("does_not_start", monkeypatch)
    (pair,) = pairs_of([0, 1]).values()
    assert pair == Pair(None, None, "the self-test did not start: cuda:0: no such card")
    assert not pair.link("auto").direct
    made = answer(monkeypatch)
    assert pairs_of([0, 1]) == {(0, 1): pair}  # this process has tried
    assert made == []
    another_process()
    assert pairs_of([0, 1])[0, 1].direct
    assert len(made) == 2


def test_a_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "hardware").write_text("a file")
    made = answer(monkeypatch)
    assert pairs_of([0, 1]) == pairs_of([0, 1])
    assert len(made) == 2


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "5", "{}", "[" * 100_000, PAIR.to_json().replace("20000000000.0", "-1"),
        PAIR.to_json().replace("20000000000.0", "NaN"), PAIR.to_json().replace("20000000000.0", "9" * 400),
        PAIR.to_json().replace("20000000000.0", '"fast"'), '{"direct": [1], "staged": null}',
    ],
)  # fmt: skip
def test_what_was_kept_may_be_damaged(text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = answer(monkeypatch)
    pairs_of([0, 1])
    (file,) = (tmp_path / "hardware").iterdir()
    file.write_text(text)
    another_process()
    assert known_pairs([0, 1]) == {}
    pairs_of([0, 1])
    assert len(made) == 4


def test_pairs_in_json() -> None:
    for pair in (PAIR, Pair(None, PAIR.staged, "no"), Pair(None, None, "no", "nor")):
        assert Pair.from_json(pair.to_json()) == pair
        assert json.loads(pair.to_json())["reason"] == pair.reason


@pytest.mark.parametrize("result", [None, [], [1, 2], [{"bandwidth": 1e9, "latency": 0}] * 2, "ab"])
def test_speeds_that_make_no_sense(result: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "run", lambda checks, opener: [Outcome(check, result) for check in checks])
    why = "the self-test answers what makes no sense"
    assert pairs_of([0, 1]) == {(0, 1): Pair(None, None, why, why)}


def test_links_by_p2p() -> None:
    wrong = Pair(None, PAIR.staged, "bytes came wrong")
    assert PAIR.link("auto") == PAIR.link("on") == Link(True, 2e10, 1e-5)
    assert PAIR.link("auto", back=True) == Link(True, 3e10, 1e-5)
    assert PAIR.link("off") == Link(False, 1e10, 3e-5, "--p2p off")
    assert wrong.link("auto", back=True) == Link(False, 1.5e10, 3e-5, "bytes came wrong")
    assert wrong.link("on") == Link(True)


@pytest.mark.parametrize(
    ("p2p", "direct", "reached"),
    [
        ("auto", "", True),
        ("auto", "bytes came wrong", False),
        ("on", "bytes came wrong", True),
        ("off", "", False),
    ],
)
def test_devices_copy_as_p2p_says(
    p2p: str, direct: str, reached: bool, monkeypatch: pytest.MonkeyPatch, cupy: FakeCupy
) -> None:
    made = answer(monkeypatch, direct=direct)
    for device in open_devices(["cuda:0", "cuda:1"], p2p=p2p).values():
        device.close()
    assert cupy.reached == ({(0, 1), (1, 0)} if reached else set())
    assert bool(made) == (p2p == "auto")  # who says how has no need of a test


def test_direct_copies_without_peer_access(cupy: FakeCupy) -> None:
    cupy._peers = False
    with pytest.raises(
        GgrunError, match=r"^cuda:0: this machine has no peer access to cuda:1: leave out --p2p"
    ):
        open_devices(["cuda:0", "cuda:1"], p2p="on")


def test_cards_that_cannot_copy_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, direct="bytes came wrong", staged="no end after 5 s")
    for p2p in ("auto", "off"):
        with pytest.raises(GgrunError, match=r"cannot copy to each other.*no end after 5 s.*; ggrun doctor"):
            open_devices(["cuda:0", "cuda:1"], p2p=p2p)
    for device in open_devices(["cuda:0"]).values():
        device.close()


def test_p2p_is_one_of_three_words() -> None:
    with pytest.raises(UsageError, match=r"^p2p 'maybe': it must be one of auto, on, off$"):
        LLM(demo_model(), devices="cpu", p2p="maybe")


@pytest.mark.parametrize("p2p", ["auto", "on", "off"])
def test_the_planner_is_told(p2p: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def card(index: int) -> Any:
        return card_info(f"cuda:{index}", "Fake", 1 << 30, 1 << 30, Speeds(1e11, 1e13, 1e13, 1e10))

    monkeypatch.setattr(local, "local_card", card)
    monkeypatch.setattr(links._KEPT, "get", lambda key: PAIR)
    devices = local_devices("cuda:2,cuda:0:500MB,cpu", p2p=p2p)
    there, back = PAIR.link(p2p), PAIR.link(p2p, back=True)
    assert [device.peers for device in devices] == [(("cuda:0", back),), (("cuda:2", there),), ()]
    assert devices[0].link_to(devices[1]) == back
    assert devices[0].link_to(devices[2]) is None
    (named, _) = named_devices(["cuda:0:500MB", "cuda:2"], p2p=p2p)
    assert named.peers == (("cuda:2", there),)


def test_cards_of_other_machines_have_no_links_of_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    made = answer(monkeypatch)
    assert [device.peers for device in local_devices("2x rtx3090")] == [(), ()]
    assert made == []
