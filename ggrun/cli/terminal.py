"""What goes to the terminal: progress of first starts, and text that cannot command it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from ggrun import kernels

# A model may write anything; in a terminal, control characters could move the cursor or change the title.
_UNPRINTABLE = dict.fromkeys(c for c in [*range(32), *range(127, 160)] if chr(c) not in "\n\t")


def printable(text: str) -> str:
    """Text without control characters, but for line ends and tabs."""
    return text.translate(_UNPRINTABLE)


@contextmanager
def compile_progress() -> Iterator[None]:
    """Say on stderr that kernels are being compiled, while they are."""
    compiled = 0

    def show(name: str) -> None:
        nonlocal compiled
        compiled += 1
        if sys.stderr.isatty():
            print(
                f"\rcompiling kernels for this CPU, first start only: {compiled} {name:<30.30}",
                end="",
                file=sys.stderr,
            )
        elif compiled == 1:
            print("compiling kernels for this CPU (first start only)", file=sys.stderr)

    with kernels.watch(show):
        yield
    if compiled and sys.stderr.isatty():
        print("\r" + " " * 85, end="\r", file=sys.stderr)
