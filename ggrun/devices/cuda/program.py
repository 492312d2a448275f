"""What a forward pass is on a card: steps, each of which launches kernels for as many rows as there are."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from ggrun.devices.base import Rows
from ggrun.devices.best import TopK
from ggrun.devices.cuda.driver import Driver, Gemm, Graph, Kernel, OutOfMemory
from ggrun.devices.streams import Stream

FEW = 8
"""As many tokens are a decode: products take kernels of their own, and what was launched twice is a graph.

Kernels for more tokens are not made for graphs: see wait_for_previous in kernels/cuda/ptx.cuh.
"""
_MOST_GRAPHS = 64
"""Kinds of batches that have one: each takes memory of the card that no plan knows of."""


class Counts(NamedTuple):
    """What launches depend on; all else is in the card's memory.

    context    the most positions that a token may look at: rounded up, so that a graph lasts a while
    top        what is enough of the outputs; None: all logits are wanted
    """

    tokens: int
    outputs: int
    pairs: int
    sequences: int
    context: int
    top: TopK | None = None

    def rows(self, over: Rows) -> int:
        """How many rows of a kind there are."""
        return (self.tokens, self.outputs, self.pairs)[over]


@dataclass(frozen=True)
class Launch:
    """A kernel and all it is given: pointers as ints, the rest as numpy scalars."""

    kernel: Kernel
    grid: tuple[int, ...]
    block: tuple[int, ...]
    args: tuple[Any, ...]
    shared: int = 0

    @property
    def name(self) -> str:
        """The kernel's."""
        return self.kernel.name


Work = Launch | Gemm
"""What a card is given to do."""

Step = Callable[[Counts], Sequence[Work]]


def enqueue(driver: Driver, works: Sequence[Work]) -> None:
    """Give all of it to the driver's stream."""
    for work in works:
        if isinstance(work, Gemm):
            driver.gemm(work)
        else:
            driver.launch(work.kernel, work.grid, work.block, work.args, work.shared)


def make_room(known: dict[Any, Any], graphs: dict[Any, Graph | None], stream: Stream) -> None:
    """Forget the kind of batch that came first, and its graph, where there are too many."""
    while len(known) >= _MOST_GRAPHS:
        kind = next(iter(known))
        stream.synchronize()  # it may be running
        del known[kind]
        graphs.pop(kind, None)


class CudaProgram:
    """Steps, and all memory that they point to. See base.Program.

    counts    what the program runs over, when it runs
    """

    def __init__(
        self,
        driver: Driver,
        steps: Sequence[Step],
        counts: Callable[[], Counts],
        keep: Sequence[Any],
    ) -> None:
        self._driver, self._steps, self._counts = driver, tuple(steps), counts
        self._keep = keep
        self._launches: dict[Counts, list[Work]] = {}
        self._graphs: dict[Counts, Graph | None] = {}

    def run(self) -> None:
        """Enqueue all launches."""
        counts, capturing = self._counts(), self._driver.capturing
        if not capturing and (graph := self._graphs.get(counts)):  # so go most tokens
            graph.launch()
            return
        if counts.tokens > FEW:
            for step in self._steps:  # the card begins with the first while the host goes through the others
                enqueue(self._driver, step(counts))
            return
        if again := counts in self._launches:
            launches = self._launches[counts]
        else:
            if not capturing:  # else nothing may be waited for
                make_room(self._launches, self._graphs, self._driver.stream)
            launches = self._launches[counts] = self.launches(counts)
        if again and launches and not capturing and (graph := self._graph(counts)):
            graph.launch()
        else:
            enqueue(self._driver, launches)

    def launches(self, counts: Counts) -> list[Work]:
        """What is launched for so many rows; kernels that were never needed are compiled."""
        return [launch for step in self._steps for launch in step(counts)]

    def _graph(self, counts: Counts) -> Graph | None:
        """None where there is no room for one."""
        if counts not in self._graphs:
            record = partial(enqueue, self._driver, self._launches[counts])
            try:
                self._graphs[counts] = self._driver.graph(record)
            except OutOfMemory:
                self._graphs[counts] = None
        return self._graphs[counts]
