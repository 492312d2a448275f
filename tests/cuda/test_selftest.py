"""The self-test's process: checks that pass, fail, hang and crash; and what it may answer."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from ggrun import GgrunError
from ggrun.devices.cuda import selftest
from ggrun.devices.cuda.copies import check_direct, check_staged
from ggrun.devices.cuda.driver import Driver
from ggrun.devices.cuda.selftest import Check, Outcome, run
from ggrun.devices.late import Schedule
from tests.cuda.limits import limit_checks
from tests.waiting import until
from tools.cuda_emulator.driver import EmulatedDriver

ROOT = Path(__file__).parents[2]
STAGED, DIRECT = Check("copies through the host", (0, 1)), Check("direct copies", (0, 1))


@pytest.fixture(autouse=True)
def no_children_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """And all the time in the world, but where something hangs. What other tests left is their own."""
    limit_checks(monkeypatch, 60.0)
    before = children()
    yield
    assert children() <= before


def children() -> set[psutil.Process]:
    """Of this process; what has ended counts until somebody has waited for it."""
    return set(psutil.Process().children())


def outcomes(opener: str, *checks: Check) -> list[Outcome]:
    return run(checks or (STAGED, DIRECT), f"tests.cuda.openers:{opener}")


@pytest.mark.parametrize("opener", ["works", "talks"])
def test_copies_that_come_right_are_timed(opener: str) -> None:
    found = outcomes(opener)
    assert [(outcome.check, outcome.reason) for outcome in found] == [(STAGED, ""), (DIRECT, "")]
    for outcome in found:
        for way in outcome.result:
            assert 1e6 < way["bandwidth"] < 1e13
            assert 1e-7 < way["latency"] < 1


@pytest.mark.parametrize("check", [check_direct, check_staged])
def test_copies_of_all_sizes(check: Callable[[Sequence[Driver]], list[dict[str, float]]]) -> None:
    schedule = Schedule(3)
    cards = [EmulatedDriver(schedule=schedule, name=name) for name in ("a", "b")]
    there, back = check(cards)
    assert there["latency"] == back["latency"]
    with pytest.raises(GgrunError, match="came wrong"):
        check([Lossy(schedule=schedule), cards[1]])
    with pytest.raises(GgrunError, match="came wrong"):
        check([cards[0], Lossy(schedule=schedule)])


class Lossy(EmulatedDriver):
    """Copies of more than a megabyte lose their last byte, on this card's side of the bus."""

    def copy(self, target: int, source: int, nbytes: int, card: Driver | None = None) -> None:
        super().copy(target, source, nbytes - (nbytes > 1 << 20), card)

    def receive(self, target: int, source: int, nbytes: int) -> None:
        super().receive(target, source, nbytes - (nbytes >= 1 << 20))


@pytest.mark.parametrize(
    ("opener", "why"),
    [
        ("without_peer_access", "the machine has no peer access between them"),
        ("corrupts", " bytes came wrong, and no error was reported"),
        ("dies", "it died of SIGKILL"),
    ],
)
def test_direct_copies_that_fail(opener: str, why: str) -> None:
    staged, direct = outcomes(opener)
    assert staged.result
    assert not staged.reason
    assert why in direct.reason
    assert (direct.result, direct.settled) == (None, True)


@pytest.mark.parametrize("opener", ["hangs", "sleeps"])
def test_what_hangs_is_ended_and_the_rest_is_tested(opener: str, monkeypatch: pytest.MonkeyPatch) -> None:
    limit_checks(monkeypatch, 1.0, DIRECT.name)
    direct, staged = outcomes(opener, DIRECT, STAGED)
    assert (direct.result, direct.reason, direct.settled) == (None, "no end after 1 s", True)
    assert staged.result


def test_only_the_check_that_hangs_is_blamed(monkeypatch: pytest.MonkeyPatch) -> None:
    limit_checks(monkeypatch, 3.0)
    pairs = [Check("direct copies", pair) for pair in ((0, 1), (1, 2), (0, 1))]
    assert [outcome.reason for outcome in outcomes("third_hangs", *pairs)] == ["", "no end after 3 s", ""]


def test_what_could_not_be_tested_is_not_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    for outcome in outcomes("does_not_start"):
        assert outcome.reason == "the self-test did not start: cuda:0: no such card"
        assert not outcome.settled
    monkeypatch.setattr(selftest, "START", 0.1)
    monkeypatch.setattr(selftest, "CARD", 0.2)
    for outcome in outcomes("starts_never"):
        assert outcome.reason == "the self-test did not start: no end after 0.5 s"
        assert not outcome.settled


def test_a_process_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    for executable in ("/nowhere/python", ""):
        monkeypatch.setattr(sys, "executable", executable)
        for outcome in outcomes("works"):
            assert outcome.reason.startswith("the self-test did not start: ")
            assert not outcome.settled


@pytest.mark.parametrize(
    ("opener", "why"),
    [
        ("full", "no room for a test: cuda:0: "),
        ("without_pinned_memory", "no room for a test: cuda:0: "),
        ("raises", "RuntimeError: cudaErrorIllegalAddress: xxx"),
    ],
)
def test_what_says_nothing_of_the_cards_is_not_settled(opener: str, why: str) -> None:
    (outcome,) = outcomes(opener, DIRECT if opener == "raises" else STAGED)
    assert outcome.reason.startswith(why)
    assert len(outcome.reason) <= 200
    assert (outcome.result, outcome.settled) == (None, False)


def test_what_hangs_takes_ten_seconds_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is tried again, and what was tried for less than its time says nothing of the cards."""
    monkeypatch.undo()
    assert selftest.LONGEST == 10.0
    assert all(limit < selftest.LONGEST for _, limit in selftest.CHECKS.values())
    limit_checks(monkeypatch, 2.0)
    monkeypatch.setattr(selftest, "LONGEST", 3.5)
    monkeypatch.setattr(
        selftest, "_MAIN", "import time; print('{\"result\": null}', flush=True); time.sleep(60)"
    )
    first, second, third = outcomes("works", DIRECT, STAGED, DIRECT)
    assert (first.reason, first.settled) == ("no end after 2 s", True)
    assert "no end after 1.5 s" in second.reason
    assert third.reason == "not tested, as others hang" or third.reason == second.reason  # it did not start
    assert not second.settled
    assert not third.settled


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("print('no JSON')", "it answers what makes no sense"),
        ("print('[' * 60000)", "it answers what makes no sense"),
        ("print('[]')", "it answers what makes no sense"),
        ("print('{\"error\": 5}')", "it answers what makes no sense"),
        ("sys.stdout.buffer.write(bytes(range(128, 256)) + b'\\n')", "it answers what makes no sense"),
        ("sys.stdout.write('x' * (1 << 20))", "it answers without end"),
        ("sys.exit(3)", "it ended with status 3"),
        ("os.kill(os.getpid(), 11)", "it died of SIGSEGV"),
        ("sys.stdout.close(); os.close(1); time.sleep(60)", "it fell silent"),
        ('print(\'{"error": "a \\\\u001b[31m line\\\\n"}\')', "a  [31m line "),
    ],
)
@pytest.mark.parametrize("started", [False, True])
def test_whatever_it_answers(script: str, why: str, started: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    first = "print('{\"result\": null}', flush=True); " if started else ""
    monkeypatch.setattr(selftest, "_MAIN", f"import os, sys, time; {first}{script}")
    (found,) = outcomes("works", DIRECT)
    prefix = "" if started else "the self-test did not start: "
    assert (found.result, found.reason, found.settled) == (None, prefix + why, started)


def test_it_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    """In time, even where it hangs in a call."""
    file = tmp_path / "pid"
    script = (
        "from ggrun.devices.cuda import selftest\n"
        "selftest.START, checks, name, pair = 60.0, selftest.CHECKS, 'direct copies', (0, 1)\n"
        "checks[name] = checks[name]._replace(limit=1.0)\n"
        "selftest.run([selftest.Check(name, pair)], 'tests.cuda.openers:tells_its_pid_and_hangs')"
    )
    environment = {**os.environ, "PID_FILE": str(file)}
    parent = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, env=environment)
    until(lambda: file.exists() and file.read_text() != "")
    child = int(file.read_text())
    parent.kill()
    parent.wait()
    until(lambda: not alive(child))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
