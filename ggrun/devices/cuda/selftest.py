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

from ggrun.errors import GgrunError


class Kind(NamedTuple):
    """The function of a check, `module:name`, and the seconds that it may take."""

    function: str
    limit: float


CHECKS = {
    "direct copies": Kind("ggrun.devices.cuda.copies:check_direct", 5.0),
    "copies through the host": Kind("ggrun.devices.cuda.copies:check_staged", 5.0),
    "sums by copies": Kind("ggrun.devices.cuda.sum_checks:try_copy", 6.0),
    "sums by NCCL": Kind("ggrun.devices.cuda.sum_checks:try_nccl", 8.0),
}
"""NCCL may take nccl.START of its seconds to connect the cards."""
OPEN = "ggrun.devices.cuda.cupy_driver:CupyDriver"
"""What makes a driver of a card's number."""

START, CARD = 8.0, 1.0
"""Seconds that the process may take to begin, and for each card that it opens."""
LONGEST = 10.0
"""Seconds for all together that hangs."""
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
    left. What hangs is not tried again; when that has taken LONGEST, the rest waits for another time.
    """
    outcomes: list[Outcome] = []
    patience = LONGEST
    while left := checks[len(outcomes) :]:
        if patience <= 0:
            return outcomes + _untested(left, "not tested, as others hang")
        outcomes += _some(left, opener, patience)
        if outcomes[-1].hung:
            patience -= CHECKS[outcomes[-1].check.name].limit
    return outcomes


def how_long() -> str:
    """What tests take, for users."""
    return f"some seconds, {LONGEST:.0f} more if cards hang"


def _some(checks: Sequence[Check], opener: str, patience: float) -> list[Outcome]:
    """The outcomes of the first checks, up to one that fails. patience: seconds for what hangs."""
    start = min(patience, START + CARD * len({card for check in checks for card in check.cards}))
    limits = [min(patience, CHECKS[check.name].limit) for check in checks]
    try:
        process = _Process(checks, limits, opener, start)
    except OSError as error:
        return _not_started(checks, error.strerror)
    outcomes: list[Outcome] = []
    with process:
        try:
            _value(process.answer(start))
        except GgrunError as error:
            return _not_started(checks, error)
        for check, limit in zip(checks, limits, strict=True):
            try:
                outcomes.append(Outcome(check, _value(process.answer(limit))))
            except GgrunError as error:
                hung = isinstance(error, _Hung)
                # In less than its time nothing is sure.
                settled = not isinstance(error, Untested) and not (hung and limit < CHECKS[check.name].limit)
                return [*outcomes, Outcome(check, reason=str(error), settled=settled, hung=hung)]
    return outcomes


def _not_started(checks: Sequence[Check], why: object) -> list[Outcome]:
    return _untested(checks, f"the self-test did not start: {why}")


def _untested(checks: Sequence[Check], reason: str) -> list[Outcome]:
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

    def __init__(self, checks: Sequence[Check], limits: Sequence[float], opener: str, start: float) -> None:
        work = json.dumps([
            [CHECKS[check.name].function, limit, check.cards, check.more]
            for check, limit in zip(checks, limits, strict=True)
        ])  # fmt: skip
        # It imports from where we do, and from nowhere else: not from the folder that a user is in.
        self._process = subprocess.Popen(
            [sys.executable, "-c", _MAIN, "\n".join(sys.path), opener, work, str(start)],
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
