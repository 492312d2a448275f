"""Waiting for threads and processes. Limits are so far away that only what hangs reaches them."""

import os
import threading
import time
import warnings
from collections.abc import Callable, Iterable
from typing import TypeVar

from ggrun import GgrunError

Found = TypeVar("Found")

PATIENCE = 180.0
"""Seconds after which something is taken to hang."""
_NAP = 0.005


def until(condition: Callable[[], Found], what: str = "it") -> Found:
    """Wait for a condition, and give what it found; fails when it does not come."""
    end = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < end, f"{what} does not come"
        time.sleep(_NAP)
    return found


def in_time(work: Callable[[], None]) -> None:
    """Do it in a thread of its own, so that waiting for ever is a failure and not the end of all tests."""
    errors: list[BaseException] = []

    def caught() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=caught, daemon=True)
    thread.start()
    ended([thread])
    if errors:
        raise errors[0]


def ended(threads: Iterable[threading.Thread]) -> None:
    """Wait for the ends of threads; fails when one does not end."""
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive(), "it waits for ever"


def workers() -> set[threading.Thread]:
    """The threads of devices."""
    return {thread for thread in threading.enumerate() if thread.name.startswith("ggrun-")}


def in_a_fork(work: Callable[[], None]) -> int:
    """The exit status of a forked process that does it: 7 when it is refused, 0 when it is not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that a process with threads is forked
        child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        except GgrunError:
            status = 7
        finally:
            os._exit(status)

    def end() -> list[int]:
        pid, status = os.waitpid(child, os.WNOHANG)
        return [status] if pid else []

    try:
        (status,) = until(end, "the end of the forked process")
    except AssertionError:
        os.kill(child, 9)
        os.waitpid(child, 0)
        raise
    return os.waitstatus_to_exitcode(status)
