"""Ctrl+C reaches a computation at once, and not only when its micro-batch is done; the second one ends it."""

import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

GRACE = 3.0
"""Seconds that a command has to come to its end when Ctrl+C was pressed twice."""
_ANSWERED = b"\0"  # no signal has this number


@contextmanager
def interruptible(computation: Any = None) -> Iterator[Callable[[], None]]:
    """Interrupt a computation when SIGINT comes: Python's own handler waits for machine code to return.

    That may never come, from a card that hangs; so a second SIGINT ends the process, if nothing else does so
    soon. Gives a function to call when a first one was answered, and there is more to do.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def answered() -> None:
        with suppress(BlockingIOError):
            os.write(writer, _ANSWERED)

    thread = threading.Thread(target=_watch, args=(reader, computation), daemon=True, name="ggrun-interrupt")
    thread.start()
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield answered
    finally:
        signal.set_wakeup_fd(before)
        os.close(writer)  # the watcher reads the end, and goes


def _watch(reader: int, computation: Any) -> None:
    pressed, until = 0, None
    while select.select([reader], [], [], until and max(0.0, until - time.monotonic()))[0]:
        if not (signals := os.read(reader, 64)):
            os.close(reader)
            return
        for number in signals:
            if number == signal.SIGINT:
                pressed += 1
                if computation is not None:  # not here: what hangs may have that wait, too
                    threading.Thread(target=computation.interrupt, daemon=True).start()
            elif number == _ANSWERED[0]:
                pressed, until = 0, None
        if pressed > 1:
            until = until or time.monotonic() + GRACE
    os.write(2, b"\nggrun: given up: something does not come to its end\n")
    os._exit(130)
