"""Sums over cards by NCCL, as CuPy calls it: one communicator a card, all from one thread.

NCCL's rings and trees add in an order that the cards and the size decide, not time, and hand one result to
all: the same bits on every card and in every run, though others than devices/exchange.py has.
"""

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from itertools import permutations
from types import ModuleType
from typing import Any

from ggrun.devices.cuda.cupy_driver import CupyDriver
from ggrun.devices.cuda.device import Cuda, card_of
from ggrun.devices.cuda.watch import Watch, within
from ggrun.devices.exchange import Members, Part
from ggrun.errors import GgrunError, Retold

_SHARED_CARD = 23000
"""2.30, the first that takes a card twice, where the environment says that it may."""
_ALLOW_SHARED = "NCCL_MULTI_RANK_GPU_ENABLE"
_P2P_DISABLE = "NCCL_P2P_DISABLE"
_INSTEAD = "--all-reduce copy sums without it"
START = 6.0
"""Seconds that NCCL may take to connect the cards."""


class NcclExchange:
    """Sums by NCCL on the cards' own streams. GgrunError when it cannot be used here, or does not start.

    It goes from card to card as copies do: through the host's memory where some are not connected directly.
    A reduction that does not end is given up, and `lost` says why: the run ends with that error, and later
    sums have to go another way. The process ends when the cards do not come to rest even then.
    """

    def __init__(self, members: Members) -> None:
        self._cards = [card_of(device, "NCCL sums over") for device, _ in members]
        self._drivers = [_driver(card) for card in self._cards]
        self._nccl = library()
        _refuse_twins(self._nccl, self._drivers)
        _choose_way(all(one.is_direct(other) for one, other in permutations(self._cards, 2)))
        self._communicators: list[Any] = []
        self.lost: str | None = None
        try:
            within(START, self._start, "NCCL did not connect the cards")
        except GgrunError as error:
            self.lost = str(error)
            self._abort()
            raise
        self._watch = Watch([driver.stream for driver in self._drivers], self._give_up)

    def all_reduce(self, parts: Sequence[Part], rows: int) -> None:
        """Enqueue that the first rows of each part become the sum of all parts."""
        if self.lost:
            raise GgrunError(self.lost)
        for driver, part in zip(self._drivers, parts, strict=True):
            if part.empty:  # what NCCL adds for it
                driver.fill(part.place.address, 0, part.place.nbytes(rows))
        places = [part.place for part in parts]
        with self._watch.one("NCCL: a reduction", _INSTEAD):
            self._reduce([place.address for place in places], rows * places[0].width, f": {_INSTEAD}")

    def forget(self) -> None:
        """Nothing is kept from one sum to the next."""

    def in_graphs(self, rows: int) -> bool:
        """NCCL could, but it ends a communicator only when all graphs that have it are gone: it waits.

        So a graph that is leaked, or dropped too late, hangs whoever closes a model: it takes more care, and
        two cards to try it on. Each sum is watched here, too, not a whole token.
        """
        return False

    def _reduce(self, addresses: Sequence[int], count: int, hint: str = "") -> None:
        with self._errors(hint), self._group():
            for communicator, driver, address in zip(
                self._communicators, self._drivers, addresses, strict=True
            ):
                kind, add = self._nccl.NCCL_FLOAT32, self._nccl.NCCL_SUM
                communicator.allReduce(address, address, count, kind, add, driver.stream.raw.ptr)

    def _start(self) -> None:
        """Connect the cards, and see one sum arrive: what comes later finds all ways open."""
        cupy = import_module("cupy")
        ranks, made = len(self._drivers), []
        with self._errors():
            unique = self._nccl.get_unique_id()
            with self._group():
                for rank, driver in enumerate(self._drivers):
                    with cupy.cuda.Device(driver.index):
                        made.append(self._nccl.NcclCommunicator(ranks, unique, rank))
        self._communicators = made  # only what is connected can be aborted
        if self.lost:  # too late: nobody waits any more
            self._abort()
            return
        memory = [driver.allocate(4) for driver in self._drivers]
        for driver, number in zip(self._drivers, memory, strict=True):
            driver.fill(number.address, 0, 4)
        self._reduce([number.address for number in memory], 1)
        for driver in self._drivers:
            driver.stream.synchronize()

    @contextmanager
    def _group(self) -> Iterator[None]:
        """Calls for all cards, which NCCL makes together: one by one they would wait for each other."""
        self._nccl.groupStart()
        try:
            yield
        finally:
            self._nccl.groupEnd()

    def _errors(self, hint: str = "") -> Retold:
        """NCCL's errors become GgrunErrors."""
        names = ", ".join(card.name for card in self._cards)
        return Retold(
            self._nccl.NcclError,
            lambda error: GgrunError(f"NCCL over {names}: {str(error).splitlines()[0]}{hint}"),
        )

    def _give_up(self, why: str) -> None:
        self.lost = why
        self._drivers[0].stream.fail(GgrunError(why))
        self._abort()

    def _abort(self) -> None:
        """End what runs on the cards. CuPy holds the interpreter while NCCL does it: mostly an instant."""
        for communicator in self._communicators:
            communicator.abort()


_connected_directly = False
"""Whether NCCL has begun in this process and may use peer access: it reads its environment once."""


def _choose_way(direct: bool) -> None:
    """Let NCCL use peer access where copies do, and nowhere else; GgrunError when it is too late for that."""
    global _connected_directly
    if not direct:
        if _connected_directly:
            raise GgrunError(f"NCCL copies directly between cards in this process already: {_INSTEAD}")
        os.environ[_P2P_DISABLE] = "1"
    elif os.environ.get(_P2P_DISABLE, "0") in ("", "0"):
        _connected_directly = True


def library() -> ModuleType:
    """CuPy's module; GgrunError, with what to install, when there is no NCCL."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # CuPy's own words for what is told here
        nccl: ModuleType | None
        try:
            nccl = import_module("cupy.cuda.nccl")
        except ImportError:
            nccl = None
    if nccl is None or not getattr(nccl, "available", False):
        raise GgrunError("NCCL is not installed: pip install nvidia-nccl-cu13 (or -cu12, as your CuPy is)")
    return nccl


def version_text(number: int) -> str:
    """NCCL's number of a version as people write it: 22703 is 2.27.3."""
    thousands = 10_000 if number >= 10_000 else 1_000
    return f"{number // thousands}.{number % thousands // 100}.{number % 100}"


def _driver(card: Cuda) -> CupyDriver:
    if not isinstance(card.driver, CupyDriver):
        raise GgrunError(f"NCCL needs real cards, {card.name} is emulated")
    return card.driver


def _refuse_twins(nccl: ModuleType, drivers: Sequence[CupyDriver]) -> None:
    """GgrunError when a card comes twice, and NCCL would not take that: older ones may hang."""
    if len({driver.index for driver in drivers}) == len(drivers):
        return
    if (version := int(nccl.get_version())) < _SHARED_CARD:
        raise GgrunError(f"NCCL {version_text(version)} takes each card once, 2.30 may take one twice")
    if os.environ.get(_ALLOW_SHARED, "0") in ("", "0"):
        raise GgrunError(f"NCCL takes each card once, without {_ALLOW_SHARED}=1 in the environment")
