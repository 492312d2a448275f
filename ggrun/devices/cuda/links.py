"""How copies go between the cards of this machine: tested once, kept, and chosen by --p2p."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from ggrun.devices.cuda import selftest
from ggrun.devices.cuda.device import Cuda
from ggrun.devices.cuda.found import key_of
from ggrun.devices.cuda.selftest import Check, Outcome
from ggrun.devices.kept import NONSENSE, Kept, tell
from ggrun.devices.ways import check_p2p
from ggrun.errors import GgrunError
from ggrun.plan.hardware import Link

Numbers = tuple[int, int]
"""Of two cards, the smaller one first."""


@dataclass(frozen=True)
class Way:
    """What copies from one card to another reach, in one way of copying."""

    bandwidth: float  # bytes a second
    latency: float  # seconds

    @classmethod
    def of(cls, found: Any) -> "Way":
        """One of NONSENSE for what no card reaches."""
        speeds = float(found["bandwidth"]), float(found["latency"])
        if not all(math.isfinite(speed) and speed > 0 for speed in speeds):
            raise ValueError("no speeds")
        return cls(*speeds)


Ways = tuple[Way, Way]
"""There and back."""


@dataclass(frozen=True)
class Pair:
    """What the self-test found of two cards. None: copies do not come right in this way.

    reason    why not directly
    broken    why not through the host's memory either
    """

    direct: Ways | None
    staged: Ways | None
    reason: str = ""
    broken: str = ""

    def link(self, p2p: str, back: bool = False) -> Link:
        """How copies go from the first to the second, or back."""
        direct = p2p == "on" or (p2p == "auto" and self.direct is not None)
        reason = "" if direct else "--p2p off" if p2p == "off" else self.reason
        if ways := self.direct if direct else self.staged:
            return Link(direct, ways[back].bandwidth, ways[back].latency, reason)
        return Link(direct, reason=reason)

    def to_json(self) -> str:
        """As `from_json` reads it."""
        ways = {"direct": self.direct, "staged": self.staged}
        written = {name: [vars(way) for way in both] if both else None for name, both in ways.items()}
        return json.dumps({**written, "reason": self.reason, "broken": self.broken})

    @classmethod
    def from_json(cls, text: str) -> "Pair":
        """One of NONSENSE for what is none."""
        found = json.loads(text)
        direct, staged = (_ways(found[name]) if found[name] else None for name in ("direct", "staged"))
        return cls(direct, staged, str(found["reason"]), str(found["broken"]))


_KEPT = Kept("link", Pair.from_json)


def pairs_of(cards: Iterable[int], anew: bool = False) -> dict[Numbers, Pair]:
    """What is known of each two of these cards; what is not is tested, which stderr tells.

    anew    test all of them, whatever was known
    """
    pairs = list(combinations(sorted(set(cards)), 2))
    known = {} if anew else known_pairs(cards)
    if missing := [pair for pair in pairs if pair not in known]:
        found = _test(missing)
        for (one, other), pair in found.items():
            if pair.direct is None:
                how = f"copies go through the host's memory and not directly ({pair.reason})"
                tell(f"cuda:{one} and cuda:{other}: {how}")
        known |= found
    return {pair: known[pair] for pair in pairs}


def known_pairs(cards: Iterable[int]) -> dict[Numbers, Pair]:
    """What was found before of each two of these cards."""
    pairs = combinations(sorted(set(cards)), 2)
    return {pair: found for pair in pairs if (found := _KEPT.get(key_of(pair)))}


def connect(devices: Sequence[tuple[int, Cuda]], p2p: str) -> None:
    """Let copies between devices, given with the numbers of their cards, go as `p2p` says.

    GgrunError where they cannot go so, or in no way.
    """
    check_p2p(p2p)
    numbers = [number for number, _ in devices]
    pairs = pairs_of(numbers) if p2p == "auto" else known_pairs(numbers)
    for (i, one), (j, other) in combinations(sorted(devices, key=lambda pair: pair[0]), 2):
        pair = pairs.get((i, j))
        same = one.driver.identity == other.driver.identity
        direct = same or p2p == "on" or (p2p == "auto" and pair is not None and pair.direct is not None)
        if pair and pair.broken and not direct:
            raise GgrunError(
                f"{one.name} and {other.name} cannot copy to each other, not even through the host's memory "
                f"({pair.broken}): use one of them, as -dev {one.name}; ggrun doctor tests them again"
            )
        one.connect(other, direct)
        other.connect(one, direct)


def _test(pairs: Sequence[Numbers]) -> dict[Numbers, Pair]:
    """Test cards, and keep what comes of it; stderr tells that, and how long it may take."""
    # Copies through the host first: a card that hangs in direct ones may be good for nothing afterwards.
    kinds = "copies through the host", "direct copies"
    checks = [Check(kind, pair) for kind in kinds for pair in pairs]
    names = ", ".join(f"cuda:{card}" for card in sorted({card for pair in pairs for card in pair}))
    tell(f"testing how {names} copy to each other: once, {selftest.how_long()}")
    outcomes = selftest.run(checks, selftest.OPEN)
    found = {}
    half = len(pairs)
    for pair, staged, direct in zip(pairs, outcomes[:half], outcomes[half:], strict=True):
        found[pair] = _judged(staged, direct)
        _KEPT.put(key_of(pair), found[pair], found[pair].to_json(), staged.settled and direct.settled)
    return found


def _judged(staged: Outcome, direct: Outcome) -> Pair:
    """What two outcomes say of a pair."""
    there, why_not_there = _speeds(staged)
    straight, reason = _speeds(direct)
    broken = why_not_there if staged.settled else ""
    return Pair(straight, there, reason, broken)


def _speeds(outcome: Outcome) -> tuple[Ways | None, str]:
    """The speeds that a check found, and the reason where there are none."""
    if outcome.reason:
        return None, outcome.reason
    try:
        return _ways(outcome.result), ""
    except NONSENSE:
        return None, "the self-test answers what makes no sense"


def _ways(found: Any) -> Ways:
    there, back = found
    return Way.of(there), Way.of(back)
