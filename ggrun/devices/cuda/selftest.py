"""Runs checks of cards in a process of their own: one that hangs or crashes is ended, and named.

A check is a function of drivers, and of what else a Check says: it returns what JSON can say, or raises a
GgrunError with what is wrong. OutOfMemory, and what is no GgrunError, say nothing of the cards.
"""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from ggrun.devices.kept import tell
from ggrun.errors import GgrunError


class Kind(NamedTuple):
    """The function of a check, `module:name`, and the seconds that it may take."""

    function: str
    limit: float


CHECKS = {
    "direct copies": Kind("ggrun.devices.cuda.copies:check_direct", 5.0),
    "copies through the host": Kind("ggrun.devices.cuda.copies:check_staged", 5.0),
    "sums by copies": Kind("ggrun.devices.cuda.sum_checks:try_copy", 8.0),
    "sums by NCCL": Kind("ggrun.devices.cuda.sum_checks:try_nccl", 10.0),
}
"""NCCL may take nccl.START of its seconds to connect the cards."""
OPEN = "ggrun.devices.cuda.cupy_driver:CupyDriver"
"""What makes a driver of a card's number."""

START, CARD = 10.0, 2.0
"""Seconds that the process may take to begin, and for each card that it opens."""
_LONGEST = 1 << 16  # bytes of an answer
_MAIN = "import sys; sys.path[:] = sys.argv[1].split('\\n'); "
_MAIN += "from ggrun.devices.cuda.selftest_process import main; main(*sys.argv[2:])"


class Untested(GgrunError):
    """A check could not be made now; another time it may be."""


class _Hung(GgrunError):
    """No answer came in time."""


@dataclass(frozen=True)
class Check:
    """A name of CHECKS, and the numbers of the cards that take part.

    more    what else its function takes, of what JSON can say
    """

    name: str
    cards: tuple[int, ...]
    more: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What became of a check: its result, or the reason why there is none.

    settled    False: it could not be made, which says nothing of the cards
    hung       it did not end in its time
    """

    check: Check
    result: Any = None
    reason: str = ""
    settled: bool = True
    hung: bool = False


def run(checks: Sequence[Check], opener: str) -> list[Outcome]:
    """The outcomes of checks, in their order, with drivers from a function such as OPEN names.

    A failure ends the process, as it may have left cards in any state: another one makes the checks that are
    left. What hangs is tried once more, which stderr tells: the machine may have been busy.
    """
    outcomes: list[Outcome] = []
    retried = -1
    while left := checks[len(outcomes) :]:
        outcomes += _some(left, opener)
        last = len(outcomes) - 1
        if outcomes[last].hung and retried != last:
            retried, hung = last, outcomes.pop()
            cards = ", ".join(f"cuda:{card}" for card in hung.check.cards)
            tell(f"{hung.check.name}, {cards}: {hung.reason}: once more, {longest(checks[last:])}")
    return outcomes


def longest(checks: Sequence[Check]) -> str:
    """How long that may take, for users: if each check needs a process of its own, and none is made twice."""
    seconds = sum(_start(checks) + CHECKS[check.name].limit for check in checks)
    return f"some seconds, {seconds:.0f} at the most"


def _start(checks: Sequence[Check]) -> float:
    """The seconds that opening all cards may take."""
    return START + CARD * len({card for check in checks for card in check.cards})


def _some(checks: Sequence[Check], opener: str) -> list[Outcome]:
    """The outcomes of the first checks, up to one that fails."""
    try:
        process = _Process(checks, opener)
    except OSError as error:
        return _not_started(checks, error.strerror)
    outcomes: list[Outcome] = []
    with process:
        try:
            _value(process.answer(_start(checks)))
        except GgrunError as error:
            return _not_started(checks, error)
        for check in checks:
            try:
                outcomes.append(Outcome(check, _value(process.answer(CHECKS[check.name].limit))))
            except GgrunError as error:
                settled, hung = not isinstance(error, Untested), isinstance(error, _Hung)
                return [*outcomes, Outcome(check, reason=str(error), settled=settled, hung=hung)]
    return outcomes


def _not_started(checks: Sequence[Check], why: object) -> list[Outcome]:
    reason = f"the self-test did not start: {why}"
    return [Outcome(check, reason=reason, settled=False) for check in checks]


def _value(answer: Any) -> Any:
    """What an answer has to say; GgrunError where that is an error."""
    if isinstance(answer, dict) and isinstance(why := answer.get("error"), str):
        raise GgrunError(_line(why))
    if isinstance(answer, dict) and isinstance(why := answer.get("untested"), str):
        raise Untested(_line(why))
    if not (isinstance(answer, dict) and "result" in answer):
        raise GgrunError("it answers what makes no sense")
    return answer["result"]


def _line(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text[:200])


class _Process:
    """The other process: it says a line of JSON when it has opened the cards, and one after each check."""

    def __init__(self, checks: Sequence[Check], opener: str) -> None:
        work = json.dumps([[*CHECKS[check.name], check.cards, check.more] for check in checks])
        # It imports from where we do, and from nowhere else: not from the folder that a user is in.
        self._process = subprocess.Popen(
            [sys.executable, "-c", _MAIN, "\n".join(sys.path), opener, work, str(_start(checks))],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0,
        )  # fmt: skip
        assert self._process.stdout
        self._pipe, self._read = self._process.stdout.fileno(), b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        assert self._process.stdout
        self._process.stdout.close()
        with suppress(subprocess.TimeoutExpired):  # a card that hangs may keep even a killed process
            self._process.wait(1)

    def answer(self, seconds: float) -> Any:
        """The next answer; GgrunError when there is none in this time, or none that could be one."""
        deadline = time.monotonic() + seconds
        while b"\n" not in self._read:
            ready, _, _ = select.select([self._pipe], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise _Hung(f"no end after {seconds:g} s")
            if not (more := os.read(self._pipe, _LONGEST)):
                raise GgrunError(self._ended())
            self._read += more
            if len(self._read) > _LONGEST:
                raise GgrunError("it answers without end")
        line, _, self._read = self._read.partition(b"\n")
        try:
            return json.loads(line)
        except (ValueError, RecursionError):
            raise GgrunError("it answers what makes no sense") from None

    def _ended(self) -> str:
        """How the process came to an end."""
        try:
            status = self._process.wait(1)
        except subprocess.TimeoutExpired:
            return "it fell silent"
        if status >= 0:
            return f"it ended with status {status}"
        names = {int(number): number.name for number in signal.Signals}
        return f"it died of {names.get(-status, f'signal {-status}')}"
