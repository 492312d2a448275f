"""What goes to the terminal: progress of first starts, and text that cannot command it; Ctrl+C from there."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ggrun.cli.streams import say

# A model may write anything; in a terminal, control characters could move the cursor or change the title.
_UNPRINTABLE = dict.fromkeys(c for c in [*range(32), *range(127, 160)] if chr(c) not in "\n\t")
_PERIOD = 0.1
"""Seconds between two looks at progress."""
_CLEARED = "\r" + " " * 85 + "\r"

_in_line = False
"""Whether the cursor is in the line that shows progress."""


def printable(text: str) -> str:
    """Text without control characters, but for line ends and tabs."""
    return text.translate(_UNPRINTABLE)


def ctrl_c_leaves() -> None:
    """Let Ctrl+C end the process at once: while ggrun starts there is nothing to tidy up.

    An exception would be lost where it comes up inside of Numba or of an import: those catch what they can.
    """
    # Whoever started us may have had it ignored: in a background job of a shell it is.
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _leave)


def ctrl_c_interrupts() -> None:
    """Let Ctrl+C raise KeyboardInterrupt, as it does in Python: from now on it ends a text."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(number: int, frame: Any) -> None:
    if _in_line:
        os.write(2, _CLEARED.encode())
    os._exit(130)


class ShownProgress:
    """Shows how far something has come: in a terminal as it goes on, else in one line when it begins.

    only_in_terminals    else nothing
    """

    def __init__(self, only_in_terminals: bool = False) -> None:
        self._quiet, self._said = only_in_terminals, set[str]()
        self._next = 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        """See ggrun.devices.progress.Progress."""
        all_of_it = -(-total >> 20)  # rounded up: a small model is no model of 0 MiB
        if sys.stderr.isatty():
            self._show(f"{what}: {done >> 20} of {all_of_it} MiB", done >= total)
        elif what not in self._said and not self._quiet:
            self._said.add(what)
            say(f"{what}: {all_of_it} MiB")

    def _show(self, line: str, last: bool) -> None:
        """Not each of many: a terminal is slower than a bus."""
        global _in_line
        if last or time.monotonic() >= self._next:
            self._next = time.monotonic() + _PERIOD
            say(_CLEARED if last else f"\r{line}", end="")
            _in_line = not last


@contextmanager
def compile_progress() -> Iterator[None]:
    """Say on stderr that kernels are being compiled, while they are."""
    from ggrun import kernels

    global _in_line
    compiled = 0

    def show(name: str) -> None:
        global _in_line
        nonlocal compiled
        compiled += 1
        if sys.stderr.isatty():
            _in_line = True
            say(f"\rcompiling kernels for this CPU, first start only: {compiled} {name:<30.30}", end="")
        elif compiled == 1:
            say("compiling kernels for this CPU (first start only)")

    try:
        with kernels.watch(show):
            yield
    finally:
        if _in_line:
            say(_CLEARED, end="")
            _in_line = False
