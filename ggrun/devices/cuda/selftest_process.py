"""The process in which selftest.py has checks made."""

import json
import os
import signal
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any, TextIO

from ggrun.devices.cuda.driver import OutOfMemory
from ggrun.errors import GgrunError

_GRACE = 2  # seconds that he has to end us first


Task = tuple[str, float, tuple[int, ...], list[Any]]
"""A check: its function, the seconds that whoever started us waits, numbers of cards, what else it takes."""


def main(opener: str, work: str, start: str) -> None:
    """Open cards by a function, `module:name`, and make checks: a list of Tasks, as JSON.

    start    seconds that whoever started us waits for the cards

    A line of JSON says that cards are open, or why they are not, and one each what a check found. The first
    failure is the last line.
    """
    # What libraries print is no answer of ours.
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        # Whatever hangs, and in whatever code: nothing is left behind when our parent dies.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        tasks: list[Task] = [
            (function, limit, tuple(cards), more) for function, limit, cards, more in json.loads(work)
        ]
        signal.alarm(round(float(start)) + _GRACE)
        drivers: dict[int, Any] = {}
        if _told(answers, partial(_open, drivers, opener, tasks)):
            for function, limit, cards, more in tasks:
                signal.alarm(round(limit) + _GRACE)
                if not _told(answers, partial(_check, function, [drivers[card] for card in cards], more)):
                    break
        # Cards that failed may not let go of what they have.
        os._exit(0)


def _open(drivers: dict[int, Any], opener: str, tasks: list[Task]) -> None:
    for card in sorted({card for _, _, cards, _ in tasks for card in cards}):
        drivers[card] = _found(opener)(card)


def _check(function: str, drivers: list[Any], more: list[Any]) -> Any:
    return _found(function)(drivers, *more)


def _found(name: str) -> Callable[..., Any]:
    """A function `module:name`."""
    module, _, function = name.partition(":")
    found: Callable[..., Any] = getattr(import_module(module), function)
    return found


def _told(answers: TextIO, work: Callable[[], Any]) -> bool:
    """Do something and say what came of it; False after an error."""
    good, answer = False, ""
    try:
        answer = json.dumps({"result": work()})
        good = True
    except OutOfMemory as error:
        answer = json.dumps({"untested": f"no room for a test: {error}"})
    except GgrunError as error:
        answer = json.dumps({"error": str(error)})
    except Exception as error:  # of any library: it says nothing of the cards
        answer = json.dumps({"untested": f"{type(error).__name__}: {error}"})
    print(answer, file=answers, flush=True)
    return good
