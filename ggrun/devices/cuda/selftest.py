"""Runs checks of cards in a process of their own: one that hangs or crashes is ended, and named.

A check is a function of drivers, and of what else a Check says: it returns what JSON can say, or raises a GgrunError with what is wrong.
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
from typing import Any, Self

from ggrun.errors import GgrunError

CHECKS = {
    "direct copies": "ggrun.devices.cuda.copies:check_direct",
    "copies through the host": "ggrun.devices.cuda.copies:check_staged",
    "sums by copies": "ggrun.devices.cuda.sum_checks:try_copy",
    "sums by NCCL": "ggrun.devices.cuda.sum_checks:try_nccl",
}
"""Where the functions are."""
OPEN = "ggrun.devices.cuda.cupy_driver:CupyDriver"
"""What makes a driver of a card's number."""

START, LIMIT = 10.0, 5.0
"""Seconds that the process may take to open cards, and for each check."""
_LONGEST = 1 << 16  # bytes of an answer
_MAIN = "import sys; sys.path[:] = sys.argv[1].split('\\n'); "
_MAIN += "from ggrun.devices.cuda.selftest_process import main; main(*sys.argv[2:])"


class Untested(GgrunError):
    """A check could not be made now; another time it may be."""


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
    """

    check: Check
    result: Any = None
    reason: str = ""
    settled: bool = True


def run(checks: Sequence[Check], opener: str) -> list[Outcome]:
    """The outcomes of checks, in their order, with drivers from a function such as OPEN names.

    Each takes its LIMIT at the most, and the process its START. A failure ends the process, as it may have
    left cards in any state: another one makes the checks that are left.
    """
    outcomes: list[Outcome] = []
    while left := checks[len(outcomes) :]:
        outcomes += _some(left, opener)
    return outcomes


def _some(checks: Sequence[Check], opener: str) -> list[Outcome]:
    """The outcomes of the first checks, up to one that fails."""
    try:
        process = _Process(checks, opener)
    except OSError as error:
        return _not_started(checks, error.strerror)
    outcomes: list[Outcome] = []
    with process:
        try:
            _value(process.answer(START))
        except GgrunError as error:
            return _not_started(checks, error)
        for check in checks:
            try:
                outcomes.append(Outcome(check, _value(process.answer(LIMIT))))
            except GgrunError as error:
                settled = not isinstance(error, Untested)
                return [*outcomes, Outcome(check, reason=str(error), settled=settled)]
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
        work = json.dumps([[CHECKS[check.name], check.cards, check.more] for check in checks])
        # It imports from where we do, and from nowhere else: not from the folder that a user is in.
        self._process = subprocess.Popen(
            [sys.executable, "-c", _MAIN, "\n".join(sys.path), opener, work, str(START), str(LIMIT)],
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
                raise GgrunError(f"no end after {seconds:g} s")
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
