"""One graph of all that several cards do for a few tokens: their programs, and the sums between them.

Enqueued one by one, the copies, additions and events of a sum take the host longer than they take the cards.
"""

from collections.abc import Hashable, Sequence
from functools import cache

from ggrun.devices.cuda.device import card_of
from ggrun.devices.cuda.driver import Driver, Graph, OutOfMemory
from ggrun.devices.cuda.program import FEW, make_room
from ggrun.devices.cuda.recorder import CudaRecorder
from ggrun.devices.exchange import AllReduce, Members
from ggrun.devices.kept import tell
from ggrun.devices.streams import Work
from ggrun.errors import GgrunError


class JointGraphs:
    """Work of several cards, each kind of it recorded when it comes for the second time, and replayed.

    sums    what they sum with: the only thing in the work that keeps events from one time to the next
    """

    def __init__(self, drivers: Sequence[Driver], sums: AllReduce) -> None:
        self._first, *self._others = drivers
        self._sums = sums
        self.forget()

    def run(self, kind: Hashable, enqueue: Work) -> None:
        """Enqueue work. kind: what it depends on, so that a recording can stand for it; None: none can."""
        graph = self._graph(kind, enqueue) if kind in self._enqueued and not self._refused else None
        if graph:
            self._join()
            graph.launch()
            self._fork()
            return
        if kind is not None and kind not in self._enqueued:
            make_room(self._enqueued, self._graphs, self._first.stream)
            self._enqueued[kind] = None  # kernels are compiled and memory is taken now, not in a recording
        enqueue()

    def forget(self) -> None:
        """Begin anew, when all cards are at rest after an error: there may be another way to sum now."""
        self._enqueued = dict[Hashable, None]()  # in their order
        self._graphs: dict[Hashable, Graph | None] = {}
        self._refused = False

    def _graph(self, kind: Hashable, enqueue: Work) -> Graph | None:
        if kind not in self._graphs:
            try:
                self._graphs[kind] = self._recorded(enqueue)
            except GgrunError as error:
                self._refused = not isinstance(error, OutOfMemory)  # then those that were recorded stay good
                self._graphs[kind] = None
                _tell(str(error))
        return self._graphs[kind]

    def _recorded(self, enqueue: Work) -> Graph:
        def record() -> None:
            self._sums.forget()  # events of before
            self._fork()
            enqueue()
            self._join()

        self._join()
        self._fork()  # all that comes now is behind what sums would wait for
        try:
            return self._first.graph(record)
        finally:
            self._sums.forget()  # events of the recording, which never come

    def _fork(self) -> None:
        """The other cards' streams go on from here."""
        begin = self._first.stream.record()
        for driver in self._others:
            driver.stream.wait(begin)

    def _join(self) -> None:
        """The first one's goes on when the others have come here."""
        for driver in self._others:
            self._first.stream.wait(driver.stream.record())


@cache
def _tell(why: str) -> None:
    """Once, not for each stage."""
    tell(f"tokens go without graphs of several cards, which is slower: {why}")


class ByGraphs:
    """Members of a stage that are cards, all of them. See Together. sums: what they sum with."""

    def __init__(self, members: Members, sums: AllReduce) -> None:
        drivers = [card_of(device, "a graph can be of").driver for device, _ in members]
        self._graphs, self._sums = JointGraphs(drivers, sums), sums
        (_, recorder), *_ = members
        assert isinstance(recorder, CudaRecorder)
        self._recorder = recorder  # all are fed alike

    def run(self, enqueue: Work) -> None:
        """Replay a graph of it, if there are few tokens, and have been as many before."""
        counts = self._recorder.counts
        can = counts.tokens <= FEW and self._sums.in_graphs(counts.tokens)
        self._graphs.run(counts if can else None, enqueue)

    def forget(self) -> None:
        """Record anew: there may be another way to sum now."""
        self._graphs.forget()
