"""What goes to the terminal: progress of first starts, and text that cannot command it; Ctrl+C from there."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# A model may write anything; in a terminal, control characters could move the cursor or change the title.
_UNPRINTABLE = dict.fromkeys(c for c in [*range(32), *range(127, 160)] if chr(c) not in "\n\t")
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


@contextmanager
def compile_progress() -> Iterator[None]:
    """Say on stderr that kernels are being compiled, while they are."""
    from ggrun import kernels
    from ggrun.cli.streams import say

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
