"""What was found out about devices: known to this process, and kept on disk for the next ones."""

import re
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Generic, TypeVar

from ggrun.kernels import cache_home

T = TypeVar("T")

NONSENSE = (ValueError, TypeError, KeyError, ArithmeticError, RecursionError)
"""What comes of reading what nobody wrote like that."""


class Kept(Generic[T]):
    """Findings of a kind, by the key of what was tested. read: one of them from JSON, or one of NONSENSE."""

    def __init__(self, kind: str, read: Callable[[str], T]) -> None:
        self._kind, self._read = kind, read
        self._found: dict[str, T | None] = {}
        """What this process knows, even where nothing can be kept. None: it is to be found anew."""

    def get(self, key: str) -> T | None:
        """What was found, now or before."""
        if key not in self._found:
            with suppress(OSError, *NONSENSE):
                self._found[key] = self._read(self._file(key).read_text())
        return self._found.get(key)

    def put(self, key: str, found: T, json: str, settled: bool = True) -> None:
        """Keep what was found; what is not settled for this process only."""
        self._found[key] = found
        with suppress(OSError):
            file = self._file(key)
            if settled:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(json)
            else:
                file.unlink(missing_ok=True)

    def forget(self, key: str) -> None:
        """Find it anew, even where the file cannot be removed."""
        self._found[key] = None
        with suppress(OSError):
            self._file(key).unlink()

    def _file(self, key: str) -> Path:
        name = re.sub(r"[^\w.-]", "_", key)
        return cache_home() / "hardware" / f"{self._kind}-{name}.json"


def tell(text: str) -> None:
    """A line on stderr; a full or closed one must not stop what works."""
    if sys.stderr:
        with suppress(OSError):
            print(f"ggrun: {text}", file=sys.stderr, flush=True)
