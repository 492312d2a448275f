"""Times what is enqueued on a card: by CUDA events around replays of a graph. On the emulator, by the host's
clock, which says nothing.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise, permutations
from statistics import median
from typing import Any

from ggrun.devices.cuda.cupy_driver import CupyDriver
from ggrun.devices.cuda.device import Cuda
from ggrun.devices.cuda.driver import Driver
from ggrun.devices.cuda.switch_over import kept_gemm
from ggrun.devices.late import Schedule
from tools.cuda_emulator.driver import EmulatedDriver
from tools.gpu_step import spread

Work = Callable[[], None]
"""Enqueues something."""

_REPLAY, _ALL = 2e-3, 0.15  # seconds that a replay, and all of them together, take at least
_TICK = 1e-6  # seconds: no time is less
_MOST_PASSES = 256  # in one graph
_REPLAYS = (7, 60)
_L2S = 4  # as many bytes as this many second-level caches are read before the first ones come again


@dataclass(frozen=True)
class Sample:
    """Seconds of one piece of work, by several stretches that had many of it."""

    seconds: list[float]
    in_a_stretch: int
    inputs: int

    def more(self) -> dict[str, Any]:
        """In microseconds."""
        times = [1e6 * seconds for seconds in self.seconds]
        return {
            "us": median(times), **spread(times), "in a stretch": self.in_a_stretch, "inputs": self.inputs,
        }  # fmt: skip


class Timer:
    """Of one driver."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._between = self._events if isinstance(driver, CupyDriver) else self._host_clock
        self._real = isinstance(driver, CupyDriver)

    def sample(self, sets: Sequence[Work], graph: bool = True) -> Sample:
        """How long a piece of work takes. sets: the same work on several inputs, which take turns.

        All are done once before, so that kernels are compiled and loaded. graph: whether the work can be in
        one; what cannot is enqueued piece by piece, and takes at least as long as that.
        """
        self.once(sets)
        passes = self._passes(sets, graph)
        work = self._together(sets, passes, graph)
        each = max(min(self._between(work, 2)), _TICK)
        least, most = _REPLAYS if self._real else (2, 2)
        found = self._between(work, min(most, max(least, round(_ALL / each))))
        many = passes * len(sets)
        return Sample([seconds / many for seconds in found], many, len(sets))

    def _passes(self, sets: Sequence[Work], graph: bool) -> int:
        """How often all inputs are gone through at once, so that it takes long enough to be timed."""
        if not self._real:
            return 1
        first = max(min(self._between(self._together(sets, 1, graph), 3)), _TICK)
        return min(max(1, _MOST_PASSES // len(sets)), round(_REPLAY / first) + 1)

    def once(self, sets: Sequence[Work]) -> None:
        """Do all of it, and wait."""
        for work in sets:
            work()
        self._driver.stream.synchronize()

    def stretches(self, work: Work, times: int) -> list[float]:
        """Seconds of each of several stretches of work, which need not be what a graph can hold."""
        self.once([work])
        return self._between(work, times)

    def _together(self, sets: Sequence[Work], passes: int, graph: bool) -> Work:
        def record() -> None:
            for _ in range(passes):
                for work in sets:
                    work()

        recorded = self._driver.graph(record) if graph else None
        return recorded.launch if recorded else record

    def _events(self, work: Work, times: int) -> list[float]:
        assert isinstance(self._driver, CupyDriver)
        cupy, stream = cupy_module(), self._driver.stream
        with self._driver.on("a measurement"):
            events = [cupy.cuda.Event() for _ in range(times + 1)]
            events[0].record(stream.raw)
            for event in events[1:]:
                work()
                event.record(stream.raw)
            stream.synchronize()
            return [cupy.cuda.get_elapsed_time(begin, end) / 1e3 for begin, end in pairwise(events)]

    def _host_clock(self, work: Work, times: int) -> list[float]:
        found = []
        for _ in range(times):
            begin = time.perf_counter()
            work()
            self._driver.stream.synchronize()
            found.append(time.perf_counter() - begin)
        return found


def cupy_module() -> Any:
    """CuPy; GgrunError where it cannot be used."""
    from ggrun.devices.cuda.found import Cards

    return Cards.found().cupy


def open_cards(emulated: bool, devices: int) -> dict[str, Cuda]:
    """So many logical devices on the first card, or on one that is emulated, by their names."""
    schedule, names = Schedule(), [f"cuda:{i}" for i in range(devices)]
    drivers: list[Driver] = [
        EmulatedDriver(90, schedule=schedule, name=name) if emulated else CupyDriver(0, name)
        for name in names
    ]
    gemm_from = None if emulated else kept_gemm(drivers[0])
    cards = {name: Cuda(driver, name, None, gemm_from) for name, driver in zip(names, drivers, strict=True)}
    for one, other in permutations(cards.values(), 2):
        one.connect(other, direct=True)
    return cards


def open_card(emulated: bool) -> Cuda:
    """The first card, or one that is emulated."""
    return open_cards(emulated, 1)["cuda:0"]


def how_timed(emulated: bool, graph: bool = True) -> str:
    """In words."""
    if emulated:
        return "the host's clock around the emulator: means nothing"
    return f"CUDA events, {'graph replays' if graph else 'enqueued by the host'}"


def sets_for(nbytes: int, driver: Driver) -> int:
    """How many inputs of so many bytes must take turns, so that none is in the cache when it comes again."""
    return min(64, max(2, -(-_L2S * driver.l2_bytes // max(1, nbytes))))
