"""Sums over cards, tried out: whether they are right, how long they take, and which way is the faster one.

`try_copy` and `try_nccl` may hang where a board is broken: they are for a process of their own.
"""

import json
import platform
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from hashlib import sha256
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ggrun import __version__
from ggrun.devices.base import Limits, Recorder
from ggrun.devices.cuda.device import Cuda
from ggrun.devices.cuda.driver import Driver
from ggrun.devices.cuda.nccl import NcclExchange
from ggrun.devices.exchange import AllReduce, Exchange, Part, Wire
from ggrun.errors import GgrunError
from ggrun.kernels import cache_home

WAYS = ("nccl", "copy")
Found = Sequence[tuple[int, float]]
"""Bytes of a part in float32, and the seconds that a sum of such parts takes; the smallest first."""
SIZES = tuple(4**i for i in range(6, 13))
"""Bytes of a part: from one token of a small model to a large one's micro-batch."""
_WIDTH = 1024
_CHECKED = (1, 7, 600)
"""Rows: of a decode, a few, and as many as are worth sharing."""
_AT_ONCE, _PASSES = 8, 2
_ROUNDING = {"f32": 2.0**-24, "bf16": 2.0**-9}


@dataclass(frozen=True)
class Timed:
    """Seconds that a sum of parts of so many bytes takes; None where NCCL cannot be used."""

    nbytes: int
    copy: float
    nccl: float | None


@dataclass(frozen=True)
class Reductions:
    """What was found out about sums over some cards.

    timed     by size, the smallest first
    refused   why NCCL is not used; empty where it can be
    """

    timed: tuple[Timed, ...] = ()
    refused: str = ""

    @classmethod
    def of(cls, copy: Found, nccl: Found | str) -> "Reductions":
        """From what `try_copy` and `try_nccl` found, or why NCCL was not tried; ValueError for nonsense."""
        refused, others = (nccl, {}) if isinstance(nccl, str) else ("", dict(nccl))
        timed = (asdict(Timed(nbytes, seconds, others.get(nbytes))) for nbytes, seconds in copy)
        return cls.from_json(json.dumps({"timed": list(timed), "refused": refused}))

    def by_nccl(self, nbytes: int) -> bool:
        """Whether NCCL is faster for parts of so many bytes: as at the largest size that is no larger."""
        smaller = [timed for timed in self.timed if timed.nbytes <= nbytes] or list(self.timed[:1])
        return bool(smaller) and (nccl := smaller[-1].nccl) is not None and nccl < smaller[-1].copy

    def to_json(self) -> str:
        """As `from_json` reads it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Reductions":
        """ValueError for what `to_json` did not write."""
        try:
            known = json.loads(text)
            timed = [
                Timed(int(t["nbytes"]), float(t["copy"]), None if t["nccl"] is None else float(t["nccl"]))
                for t in known["timed"]
            ]
            found = cls(tuple(timed), str(known["refused"]))
        except (KeyError, TypeError, RecursionError, OverflowError):
            raise ValueError("these are no timings of reductions") from None
        if sorted(found.timed, key=lambda t: t.nbytes) != timed or any(not _makes_sense(t) for t in timed):
            raise ValueError("these timings of reductions make no sense")
        return found


def _makes_sense(timed: Timed) -> bool:
    seconds = (timed.copy, timed.nccl if timed.nccl is not None else timed.copy)
    return timed.nbytes > 0 and all(0 < s < 1e6 for s in seconds)


def check_reductions(drivers: Sequence[Driver], way: str, wire: str = "f32") -> None:
    """GgrunError when sums over these cards are wrong, or not the same to the bit on all and twice."""
    cards = _Cards(drivers, max(_CHECKED), way, wire)
    for rows, empty in product(_CHECKED, (False, True)):
        values = _values(len(drivers), rows)
        if empty:
            values[-1] = 0
        runs = [cards.sums(values, rows, empty) for _ in range(2)]
        what = f"sums of {rows} rows over {len(drivers)} cards by {way}"
        if any(not np.array_equal(sums[0], other) for sums in runs for other in sums[1:]):
            raise GgrunError(f"{what} are not the same on all cards")
        if not np.array_equal(runs[0][0], runs[1][0]):
            raise GgrunError(f"{what} are not the same the second time")
        error = np.abs(runs[0][0] - values.astype(np.float64).sum(0))
        # Each addition rounds what it has so far; bfloat16 may be rounded after each, too.
        if not (error <= 2 * len(drivers) * _ROUNDING[wire] * np.abs(values).sum(0)).all():
            raise GgrunError(f"{what} are wrong")


def time_reductions(
    drivers: Sequence[Driver], way: str, sizes: Sequence[int] = SIZES, wire: str = "f32"
) -> Found:
    """How long sums over these cards take, when one follows the other as in a model."""
    row = 4 * _WIDTH
    cards = _Cards(drivers, -(-max(sizes) // row), way, wire)
    return [(size, cards.seconds(-(-size // row))) for size in sizes]


def try_copy(drivers: Sequence[Driver]) -> Found:
    """Check and time sums by copies, for a self-test."""
    check_reductions(drivers, "copy")
    return time_reductions(drivers, "copy")


def try_nccl(drivers: Sequence[Driver]) -> Found:
    """Check and time sums by NCCL, for a self-test."""
    check_reductions(drivers, "nccl")
    return time_reductions(drivers, "nccl")


def kept(drivers: Sequence[Driver]) -> Reductions | None:
    """What was found out about these cards before, if it makes sense."""
    with suppress(OSError, ValueError):
        return Reductions.from_json(_file(drivers).read_text())
    return None


def keep(drivers: Sequence[Driver], found: Reductions) -> None:
    """Keep it, or find it out again the next time."""
    with suppress(OSError):
        file = _file(drivers)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(found.to_json())


def _file(drivers: Sequence[Driver]) -> Path:
    cards = [f"{driver.name} {getattr(driver, 'index', 0)}" for driver in drivers]
    key = sha256("\n".join([platform.node(), __version__, *cards]).encode()).hexdigest()[:24]
    return cache_home() / "hardware" / f"sums-{key}.json"


class _Cards:
    """Cards, and a way to sum over them."""

    def __init__(self, drivers: Sequence[Driver], rows: int, way: str, wire: str) -> None:
        self._devices = [Cuda(driver, f"cuda:{i}") for i, driver in enumerate(drivers)]
        members: list[tuple[Cuda, Recorder]] = [(d, d.recorder(Limits(rows, 1, 1, 1))) for d in self._devices]
        self._members = members
        self._places = [ops.mailbox(_WIDTH) for _, ops in members]
        travels = Wire(members, _WIDTH, wire)
        kinds: dict[str, type[Exchange] | type[NcclExchange]] = {"copy": Exchange, "nccl": NcclExchange}
        self._way: AllReduce = kinds[way](members, _WIDTH, travels)

    def sums(self, values: NDArray[np.float32], rows: int, empty: bool) -> list[NDArray[np.float32]]:
        """What each card has then. values: [cards, rows, width]; empty: the last card adds nothing."""
        for device, place, part in zip(self._devices, self._places, values, strict=True):
            device.write(place, part)
        last = len(self._places) - 1
        parts = [Part(place, empty and i == last) for i, place in enumerate(self._places)]
        self._way.all_reduce(parts, rows)
        found = [np.empty_like(part) for part in values]
        for device, place, out in zip(self._devices, self._places, found, strict=True):
            device.download(place, rows, out)
        self._settle()
        return found

    def seconds(self, rows: int) -> float:
        """Of one of many sums in a row: the best of several passes."""
        zeros = np.zeros((rows, _WIDTH), np.float32)
        for device, place in zip(self._devices, self._places, strict=True):
            device.write(place, zeros)
        parts = [Part(place) for place in self._places]
        self._pass(parts, rows)
        return min(self._pass(parts, rows) for _ in range(_PASSES))

    def _pass(self, parts: Sequence[Part], rows: int) -> float:
        start = time.perf_counter()
        for _ in range(_AT_ONCE):
            self._way.all_reduce(parts, rows)
        self._settle()
        return (time.perf_counter() - start) / _AT_ONCE

    def _settle(self) -> None:
        for device in self._devices:
            device.stream.synchronize()


def _values(cards: int, rows: int) -> NDArray[np.float32]:
    """Of sizes so different that another order of additions shows in the bits."""
    rng = np.random.default_rng(rows)
    sizes = 10.0 ** rng.integers(-4, 5, (cards, rows, _WIDTH))
    return (rng.standard_normal((cards, rows, _WIDTH)) * sizes).astype(np.float32)
