"""How sums over the cards of this machine are made best: tested once, and kept."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ggrun.devices.cuda import selftest
from ggrun.devices.cuda.found import key_of
from ggrun.devices.cuda.links import Numbers
from ggrun.devices.cuda.nccl import library
from ggrun.devices.cuda.selftest import Check, Outcome
from ggrun.devices.kept import NONSENSE, Kept, tell
from ggrun.errors import GgrunError


@dataclass(frozen=True)
class Tried:
    """What came of one way to sum.

    timed     bytes of a part in float32, and the seconds that a sum of such parts takes; the smallest first
    reason    why it cannot be used
    """

    timed: tuple[tuple[int, float], ...] = ()
    reason: str = ""

    def seconds(self, nbytes: int) -> float:
        """Of the largest size that is no larger; infinite where the way cannot be used."""
        smaller = [seconds for size, seconds in self.timed if size <= nbytes]
        return smaller[-1] if smaller else self.timed[0][1] if self.timed else math.inf

    @classmethod
    def of(cls, timed: Any, reason: Any = "") -> "Tried":
        """One of kept.NONSENSE for what no test finds."""
        found = sorted((int(size), float(seconds)) for size, seconds in timed)
        if not all(size > 0 and 0 < seconds < math.inf for size, seconds in found):
            raise ValueError("no timings")
        return cls(tuple(found), str(reason))


@dataclass(frozen=True)
class Reductions:
    """What the self-test found of sums over some cards."""

    copy: Tried = Tried()
    nccl: Tried = Tried()

    def by_nccl(self, nbytes: int) -> bool:
        """Whether NCCL is the faster way for parts of so many bytes."""
        return self.nccl.seconds(nbytes) < self.copy.seconds(nbytes)

    @property
    def ever_by_nccl(self) -> bool:
        """Whether it is for any."""
        return any(self.by_nccl(size) for size, _ in self.nccl.timed)

    def to_json(self) -> str:
        """As `from_json` reads it."""
        return json.dumps({"copy": vars(self.copy), "nccl": vars(self.nccl)})

    @classmethod
    def from_json(cls, text: str) -> "Reductions":
        """One of kept.NONSENSE for what is none."""
        found = json.loads(text)
        return cls(*(Tried.of(found[way]["timed"], found[way]["reason"]) for way in ("copy", "nccl")))


_KEPT = Kept("sums in graphs", Reductions.from_json)


def reductions_of(cards: Sequence[int], direct: Sequence[Numbers], anew: bool = False) -> Reductions:
    """What is known of sums over these cards; what is not is tested, which stderr tells.

    direct  pairs of them between which copies go directly
    anew    test it, whatever was known

    GgrunError where no way comes right.
    """
    key = key_of(cards, _nccl_version(), str(sorted(direct)))
    found = None if anew else _KEPT.get(key)
    if found is None:
        found = _test(cards, direct, key)
    if found.copy.reason and not found.nccl.timed:
        raise GgrunError(
            f"cards {', '.join(map(str, cards))} cannot share rows: sums by copies: {found.copy.reason}; "
            f"by NCCL: {found.nccl.reason or 'not tested'}: use -sm layer; ggrun doctor tests them again"
        )
    return found


def _test(cards: Sequence[int], direct: Sequence[Numbers], key: str) -> Reductions:
    """Test cards, and keep what comes of it; stderr tells that, and how long it may take."""
    # Copies first: cards that hang in NCCL may be good for nothing afterwards.
    pairs = tuple((cards.index(one), cards.index(other)) for one, other in direct)
    checks = [Check(name, tuple(cards), (pairs,)) for name in ("sums by copies", "sums by NCCL")]
    names = ", ".join(f"cuda:{card}" for card in cards)
    tell(f"testing how {names} sum what they have: once, {selftest.how_long()}")
    outcomes = selftest.run(checks, selftest.OPEN)
    found = Reductions(*map(_tried, outcomes))
    if why := outcomes[1].reason:
        tell(f"{names}: sums go by copies, without NCCL ({why})")
    _KEPT.put(key, found, found.to_json(), all(outcome.settled for outcome in outcomes))
    return found


def _tried(outcome: Outcome) -> Tried:
    if outcome.reason:  # what could not be tried says nothing of the cards
        return Tried(reason=outcome.reason if outcome.settled else "")
    try:
        return Tried.of(outcome.result)
    except NONSENSE:
        return Tried(reason="the self-test answers what makes no sense")


def _nccl_version() -> str:
    """Another NCCL is another way to sum."""
    try:
        return str(library().get_version())
    except GgrunError:
        return ""
