"""What was found out about cards, kept for as long as cards, driver, machine and ggrun are the same."""

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Generic, TypeVar

from ggrun import __version__
from ggrun.devices.cuda.found import Cards, nvidia_driver
from ggrun.kernels import cache_home

T = TypeVar("T")

_STATE = ("/proc/sys/kernel/osrelease", "/proc/cmdline")
_IOMMU = Path("/sys/kernel/iommu_groups")

NONSENSE = (ValueError, TypeError, KeyError, ArithmeticError, RecursionError)
"""What comes of reading what nobody wrote like that."""


class Kept(Generic[T]):
    """Findings of a kind, by the key of what was tested. read: one of them from JSON, or one of NONSENSE."""

    def __init__(self, kind: str, read: Callable[[str], T]) -> None:
        self._kind, self._read = kind, read
        self._found: dict[str, T] = {}
        """What this process knows, even where nothing can be kept."""

    def get(self, key: str) -> T | None:
        """What was found, now or before."""
        if key not in self._found:
            with suppress(OSError, *NONSENSE):
                self._found[key] = self._read(self._file(key).read_text())
        return self._found.get(key)

    def put(self, key: str, found: T, json: str, settled: bool) -> None:
        """Keep what was found; what is not settled for this process only."""
        self._found[key] = found
        with suppress(OSError):
            file = self._file(key)
            if settled:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(json)
            else:
                file.unlink(missing_ok=True)

    def _file(self, key: str) -> Path:
        return cache_home() / "hardware" / f"{self._kind}-{key}.json"


def key_of(cards: Sequence[int], *more: str) -> str:
    """What makes cards and the ways between them: another driver or IOMMU is another way."""
    there = [Cards.found().card(number).identity for number in cards]
    driver = [str(Cards.found().cupy.cuda.runtime.driverGetVersion()), nvidia_driver()]
    return sha256("\n".join([*there, *driver, __version__, *_machine(), *more]).encode()).hexdigest()[:24]


def _machine() -> list[str]:
    """What of the machine decides whether cards reach each other."""
    found = []
    for file in _STATE:
        with suppress(OSError):
            found.append(Path(file).read_text(errors="replace"))
    with suppress(OSError):
        found.append(str(len(list(_IOMMU.iterdir()))))
    return found


def tell(text: str) -> None:
    """A line on stderr; a full or closed one must not stop what works."""
    if sys.stderr:
        with suppress(OSError):
            print(f"ggrun: {text}", file=sys.stderr, flush=True)
