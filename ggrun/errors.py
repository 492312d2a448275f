"""The errors that users see: one clear line, and an exit status."""

from collections.abc import Callable
from typing import Any


class GgrunError(Exception):
    """Something is wrong with a file, a device or a request; str() is the one line that says so."""

    exit_status = 1


class Interrupted(GgrunError):
    """A computation was told to stop."""


class UsageError(GgrunError):
    """A flag, an argument or a request does not make sense."""

    exit_status = 2


def escaped(text: str) -> str:
    """Text with what cannot be printed as Python writes it: names of files may have anything in them."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class Retold:
    """Where errors of some kinds become others, which say more.

    A class: in Python 3.12 and later, an error that becomes another one in a generator's `with` is part of a
    cycle, and keeps what its frames hold, a card's memory too, until somebody collects garbage.
    """

    def __init__(
        self,
        kinds: type[Exception] | tuple[type[Exception], ...],
        told: Callable[[Any], Exception],
    ) -> None:
        self._kinds, self._told = kinds, told

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, self._kinds):
            raise self._told(error) from None
