"""Whether sums over cards come right, and how long they take: what the self-test runs, as it may hang."""

import time
from collections.abc import Hashable, Sequence
from itertools import permutations, product

import numpy as np
from numpy.typing import NDArray

from ggrun.devices.base import Limits, Recorder
from ggrun.devices.cuda.device import Cuda
from ggrun.devices.cuda.driver import Driver
from ggrun.devices.cuda.joint import JointGraphs
from ggrun.devices.cuda.nccl import NcclExchange
from ggrun.devices.exchange import AllReduce, Exchange, Part
from ggrun.devices.streams import Work
from ggrun.errors import GgrunError

SIZES = tuple(4**i for i in range(6, 13))
"""Bytes of a part, of float32: from one token of a small model to a micro-batch of a large one."""
_WIDTH = 1024
_CHECKED = (1, 7, 600)
"""Rows: of a decode, a few, and as many as are worth sharing."""
_CHECKS = 3
"""How often each sum is made: the second time it is recorded for a graph, if it can be in one."""
_AT_ONCE, _WARM, _PASSES = 8, 2, 2
_FEW_TOKENS = 256 << 10
"""Bytes: parts up to so many are those of a few tokens (8 of a width of 8192), whose sums are in graphs."""
_ROUNDING = {"f32": 2.0**-24, "bf16": 2.0**-9}

Timings = list[tuple[int, float]]
"""Bytes of a part, and the seconds that a sum of such parts takes; the smallest first."""

Direct = Sequence[Sequence[int]]
"""Pairs of drivers, by their places, the smaller one first, between which copies go directly."""


def try_copy(drivers: Sequence[Driver], direct: Direct) -> Timings:
    """Check and time sums by copies."""
    return _try(drivers, "copy", direct)


def try_nccl(drivers: Sequence[Driver], direct: Direct) -> Timings:
    """Check and time sums by NCCL."""
    return _try(drivers, "nccl", direct)


def _try(drivers: Sequence[Driver], way: str, direct: Direct) -> Timings:
    check_reductions(drivers, way, direct)
    return time_reductions(drivers, way, direct, SIZES)


def check_reductions(drivers: Sequence[Driver], way: str, direct: Direct, wire: str = "f32") -> None:
    """GgrunError when sums over these cards are wrong, or not the same to the bit on all and twice.

    wire    what travels of copies
    """
    cards = _Cards(drivers, max(_CHECKED), way, direct, wire)
    for rows, empty in product(_CHECKED, (False, True)):
        values = _values(len(drivers), rows)
        if empty:
            values[-1] = 0
        runs = [cards.sums(values, rows, empty) for _ in range(_CHECKS)]
        if any(not np.array_equal(sums[0], other) for sums in runs for other in sums[1:]):
            raise GgrunError(f"sums of {rows} rows are not the same on all cards")
        if not all(np.array_equal(runs[0][0], again[0]) for again in runs[1:]):
            raise GgrunError(f"sums of {rows} rows are not the same every time")
        error = np.abs(runs[0][0] - values.astype(np.float64).sum(0))
        # Each addition rounds what there is so far.
        if not (error <= 2 * len(drivers) * _ROUNDING[wire] * np.abs(values).sum(0)).all():
            raise GgrunError(f"sums of {rows} rows are wrong")


def time_reductions(
    drivers: Sequence[Driver], way: str, direct: Direct, sizes: Sequence[int], wire: str = "f32"
) -> Timings:
    """How long sums over these cards take, when one follows the other as in a model."""
    row = 4 * _WIDTH
    cards = _Cards(drivers, -(-max(sizes) // row), way, direct, wire)
    return [(size, cards.seconds(-(-size // row))) for size in sizes]


class _Cards:
    """Cards, and a way to sum over them; OutOfMemory where they have no room for it."""

    def __init__(self, drivers: Sequence[Driver], rows: int, way: str, direct: Direct, wire: str) -> None:
        self._devices = [Cuda(driver, f"cuda:{i}") for i, driver in enumerate(drivers)]
        _connect(self._devices, direct)
        limits = Limits(rows, 1, 1, 1)
        members: list[tuple[Cuda, Recorder]] = [(card, card.recorder(limits)) for card in self._devices]
        self._places = [ops.mailbox(_WIDTH) for _, ops in members]
        by_copies = way == "copy"
        self._way: AllReduce = Exchange(members, _WIDTH, wire) if by_copies else NcclExchange(members)
        self._graphs = JointGraphs(drivers, self._way)
        self._keep = members

    def sums(self, values: NDArray[np.float32], rows: int, empty: bool) -> list[NDArray[np.float32]]:
        """What each card has then. values: [cards, rows, width]; empty: the last card adds nothing."""
        for device, place, part in zip(self._devices, self._places, values, strict=True):
            device.write(place, part)
        last = len(self._places) - 1
        parts = [Part(place, empty and i == last) for i, place in enumerate(self._places)]
        self._enqueue(rows, empty, lambda: self._way.all_reduce(parts, rows))
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
        for _ in range(_WARM):
            self._pass(parts, rows)
        return min(self._pass(parts, rows) for _ in range(_PASSES))

    def _pass(self, parts: Sequence[Part], rows: int) -> float:
        def enqueue() -> None:
            for _ in range(_AT_ONCE):
                self._way.all_reduce(parts, rows)

        start = time.perf_counter()
        self._enqueue(rows, "timed", enqueue)
        self._settle()
        return (time.perf_counter() - start) / _AT_ONCE

    def _enqueue(self, rows: int, what: Hashable, work: Work) -> None:
        """As in a model: those of few tokens in a graph, from the second time on."""
        graphed = self._places[0].nbytes(rows) <= _FEW_TOKENS and self._way.in_graphs(rows)
        self._graphs.run((rows, what) if graphed else None, work)

    def _settle(self) -> None:
        for device in self._devices:
            device.stream.synchronize()


def _connect(cards: Sequence[Cuda], direct: Direct) -> None:
    """Let copies go directly, and through the host's memory elsewhere."""
    for i, j in permutations(range(len(cards)), 2):
        cards[i].connect(cards[j], sorted((i, j)) in [list(pair) for pair in direct])


def _values(cards: int, rows: int) -> NDArray[np.float32]:
    """Of sizes so different that another order of additions shows in the bits."""
    rng = np.random.default_rng(rows)
    sizes = 10.0 ** rng.integers(-4, 5, (cards, rows, _WIDTH))
    return (rng.standard_normal((cards, rows, _WIDTH)) * sizes).astype(np.float32)
