"""Standard input, output and errors as they may come: closed, full, or in another encoding."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ggrun.errors import GgrunError


class _Output:
    """Standard output whose errors say that they are its own, as those of files have their names."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> Any:
        """As any stream does."""
        with _named():
            return self._stream.write(text)

    def flush(self) -> None:
        """As any stream does."""
        with _named():
            self._stream.flush()


@contextmanager
def _named() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        error.filename = "output"
        raise


@contextmanager
def usable_streams() -> Iterator[None]:
    """Put something where a stream is closed, and ? for what an encoding lacks; errors of output say so."""
    _open_streams()
    output: Any = _Output(sys.stdout)
    before, sys.stdout = sys.stdout, output
    try:
        yield
    finally:
        sys.stdout = before
        _close_streams()


def _open_streams() -> None:
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


def _close_streams() -> None:
    """Give up what cannot be written, so that Python does not complain of it in its own way at the end."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def utf8_output() -> None:
    """Let a model's text go into files and pipes as it is; a terminal gets it in the user's encoding."""
    if not sys.stdout.isatty() and hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(encoding="utf-8", errors="replace")


def read_stdin() -> str:
    """All that is piped in."""
    try:
        return sys.stdin.buffer.read().decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except OSError as error:
        raise GgrunError(f"standard input: {error.strerror}") from None
    except UnicodeDecodeError:
        raise GgrunError("standard input: not a text in UTF-8") from None


def say(text: str, end: str = "\n") -> None:
    """Something on stderr, where it can be written."""
    with suppress(OSError):
        print(text, end=end, file=sys.stderr, flush=True)


def complain(message: str) -> None:
    """What went wrong, in one line."""
    say(f"ggrun: {' '.join(message.split())}")
