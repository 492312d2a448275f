"""Standard input, output and errors as they may come: closed, full, or in another encoding."""

import os
import sys
from contextlib import suppress

from ggrun.errors import GgrunError


def open_streams() -> None:
    """Put something where a stream is closed, and ? for what the user's encoding cannot say."""
    # Output to nowhere has to fail: a stream that can only be read does. Complaints may get lost.
    for name, mode, access in (
        ("stdin", "r", os.O_RDONLY),
        ("stdout", "w", os.O_RDONLY),
        ("stderr", "w", os.O_WRONLY),
    ):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, access), mode))
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def close_streams() -> None:
    """Give up what cannot be written, so that Python does not complain of it in its own way at the end."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def read_stdin() -> str:
    """All that is piped in."""
    try:
        return sys.stdin.buffer.read().decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError:
        raise GgrunError("standard input: not a text in UTF-8") from None


def say(text: str, end: str = "\n") -> None:
    """Something on stderr, where it can be written."""
    with suppress(OSError):
        print(text, end=end, file=sys.stderr, flush=True)


def complain(message: str) -> None:
    """What went wrong, in one line."""
    say(f"ggrun: {' '.join(message.split())}")
