"""The fastest way to lay items on places, in their order, within the memory of each.

Items are the half layers and the output. Some have their place already; the others go to the places in turn,
each a run of them (or none). That is a shortest path: f[p][j] is the least time of the items before j when
the last run is at place p and ends there. A run may begin anywhere in a window, as more items take more
memory, and the least of a window that slides costs one step: items * places^2 in all.

What is least is the time of one token that is written and one that is read. The second depends on the device
with the most to do, for which micro-batches wait: the path is looked for again with less and less allowed to
each, until what is lost outweighs all that could be won. So the answer is exact.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate, pairwise

from ggrun.plan.cost import Place
from ggrun.plan.tables import Sums, Table

NEVER = 1 << 100
"""A time that no plan takes."""


@dataclass(frozen=True)
class Problem:
    """What is to be laid out. Limits are the bytes that may be taken of each device."""

    sums: Sums
    places: Sequence[Table]  # in the order that activations pass them
    limits: Mapping[str, int]
    forced: Mapping[int, Table] = field(default_factory=dict)  # items that have their place
    embedding: Table | None = None  # where it has to be; None: with the first item


@dataclass(frozen=True)
class Layout:
    """A place for each item."""

    places: tuple[Place, ...]
    embedding: Place
    total: int  # picoseconds, as Clock.both adds them up
    longest: int  # of a micro-batch, at the device with the most to do
    pace: int = NEVER  # total, and what micro-batches wait for the longest


def solve(problem: Problem, below: int = NEVER) -> Layout | None:
    """The layout with the least pace (see Speed), if it is less than `below`; None when there is none."""
    run, best = _Run(problem), None
    if not run.possible:
        return None
    most, waiting = NEVER, problem.sums.clock.micro_batches - 1
    while found := run.layout(most):
        if found.total + waiting * run.least_load >= below:
            break
        if waiting:
            found = run.evened(found)
        if (pace := found.total + waiting * found.longest) < below:
            best, below = replace(found, pace=pace), pace
        most = found.longest - 1
    return best


def solvable(problem: Problem) -> bool:
    """Whether there is any layout within the limits."""
    run = _Run(problem)
    return run.possible and run.layout(NEVER) is not None


class _Run:
    """The numbers of a problem that stay the same while the limit of the prompt changes."""

    def __init__(self, problem: Problem) -> None:
        self.p, self.clock = problem, problem.sums.clock
        self.items = range(problem.sums.facts.items)
        # Where it is, if that is known: else it goes with the first item, which is free then.
        self.embedding = problem.embedding or problem.forced.get(0)
        self._ways: dict[tuple[Table, Table], int] = {}
        self.free = [i for i in self.items if i not in problem.forced]
        self._gaps()
        self.loads = self._loads()
        self.left = dict(problem.limits)
        self._take_forced()
        self.possible = all(left >= 0 for left in self.left.values())

    # ---------------------------------------------------------------- what is fixed

    def _gaps(self) -> None:
        """The items with fixed places before each free one, and after the last; the embedding is one."""
        self.gaps: list[list[Table]] = [[self.p.embedding] if self.p.embedding else []]
        self.fixed = 0
        for i in self.items:
            if i in self.p.forced:
                table = self.p.forced[i]
                self.gaps[-1].append(table)
                self.fixed += table.cost[i]
            else:
                self.gaps.append([])
        for gap in self.gaps:
            self.fixed += sum(self._moved(a, b) for a, b in pairwise(gap))

    def _moved(self, a: Table, b: Table) -> int:
        """What handing the residual stream on costs. Asked millions of times: worked out once."""
        if (known := self._ways.get((a, b))) is not None:
            return known
        a_to_b = a.place.devices, b.place.devices
        way = self.clock.both(self.clock.move(*a_to_b), self.clock.move(*a_to_b, self.clock.micro_batch))
        self._ways[a, b] = way
        return way

    def _loads(self) -> dict[str, int]:
        """What devices have to do for each micro-batch, with what has its place."""
        loads = dict.fromkeys((name for t in self.p.places for name in t.place.names), 0)
        for i, table in self.p.forced.items():
            for name in table.place.names:
                loads[name] = loads.get(name, 0) + table.batch[i]
        return loads

    @cached_property
    def least_load(self) -> int:
        """No layout has a device with the most to do that does less than this."""
        shared = sum(min(table.batch[i] for table in self.p.places) for i in self.free)
        return max(shared // max(1, len(self.p.places)), *self.loads.values(), 0)

    def _take_forced(self) -> None:
        """Take the memory of what has its place: items, and the buffers of their devices."""
        for i, table in self.p.forced.items():
            self._take(table, self._memory(table, i))
        if self.embedding:
            self._take(self.embedding, self.embedding.embedding)
        fixed = [*self.p.forced.values(), *([self.embedding] if self.embedding else [])]
        self.buffered = {table.place.members for table in fixed}
        for table in {table.place.members: table for table in fixed}.values():
            self._take(table, table.buffers)

    def _memory(self, table: Table, item: int) -> list[int]:
        """The bytes of an item at a place, by member; a tied output takes nothing where the embedding is."""
        found = [column[item] for column in table.memory]
        if item != self.items[-1] or not self.embedding:
            return found
        there, names = self.embedding.place.names, table.place.names
        return [n - t * (name in there) for n, t, name in zip(found, table.tied, names, strict=True)]

    def _take(self, table: Table, nbytes: Sequence[int]) -> None:
        for name, n in zip(table.place.names, nbytes, strict=True):
            self.left[name] -= n

    # ---------------------------------------------------------------- the shortest path

    def evened(self, layout: Layout) -> Layout:
        """Of all layouts that take the same, the one whose device with the most to do has the least."""
        low = self.least_load - 1
        while layout.longest - low > 1:
            middle = (low + layout.longest) // 2
            found = self.layout(middle)
            if found is not None and found.total == layout.total:
                layout = found
            else:
                low = middle
        return layout

    def layout(self, most: int) -> Layout | None:
        """The layout with the least total in which no device takes more than `most` for a micro-batch."""
        n, tables = len(self.free), self.p.places
        if not n:
            return self._made(self.fixed, {})
        least = [[NEVER] * (n + 1) for _ in tables]
        back = [[(0, -1)] * (n + 1) for _ in tables]
        for p in range(len(tables)):
            starts, times = [self._start(p, i, least) for i in range(n)], self._times[p]
            lows = self._lows(p, most)
            window: deque[tuple[int, int]] = deque()
            for j in range(1, n + 1):
                key = starts[j - 1][0] - times[j - 1]
                while window and window[-1][0] >= key:
                    window.pop()
                window.append((key, j - 1))
                while window and window[0][1] < lows[j]:
                    window.popleft()
                if window and window[0][0] + times[j] < NEVER // 2:
                    least[p][j] = window[0][0] + times[j]
                    back[p][j] = (window[0][1], starts[window[0][1]][1])
        best = min(range(len(tables)), key=lambda p: least[p][n], default=0)
        if not tables or least[best][n] >= NEVER:
            return None
        return self._made(self.fixed + least[best][n], self._walked(back, best))

    @cached_property
    def _times(self) -> list[list[int]]:
        """For each place the time of all free items before j there."""
        return [self._time_at(table) for table in self.p.places]

    def _time_at(self, table: Table) -> list[int]:
        """The time of all free items before j at a place, with the ways from and to what is fixed."""
        costs = []
        for j, item in enumerate(self.free):
            before, after = self.gaps[j], self.gaps[j + 1]
            into = self._moved(before[-1], table) if before else 0
            out = self._moved(table, after[0]) if after else 0
            costs.append(into + table.cost[item] + out)
        return [0, *accumulate(costs)]

    def _start(self, p: int, i: int, least: list[list[int]]) -> tuple[int, int]:
        """The least time before a run at place p that begins with free item i, and the place before it."""
        if i == 0:
            return 0, -1
        best, tables = (NEVER, -1), self.p.places
        for q in range(p):
            # A user's flags can end the part of the host between layers only (-ngl).
            if least[q][i] >= NEVER or (tables[q].place.devices[0].host and self.free[i] % 2):
                continue
            way = 0 if self.gaps[i] else self._moved(tables[q], tables[p])
            best = min(best, (least[q][i] + way, q))
        return best

    def _lows(self, p: int, most: int) -> list[int]:
        """For each end j, the first free item with which a run at place p can begin: memory and `most`."""
        table = self.p.places[p]
        busy = max(self.loads[name] for name in table.place.names)
        batches = _sliding([table.batch[item] for item in self.free], most - busy)
        return [max(pair) for pair in zip(batches, self._memory_lows[p], strict=True)]

    @cached_property
    def _memory_lows(self) -> list[list[int]]:
        """For each place and end the first free item with which memory lets a run begin."""
        return [self._memory_low(table) for table in self.p.places]

    def _memory_low(self, table: Table) -> list[int]:
        buffered, lows = table.place.members in self.buffered, []
        memory = [self._memory(table, item) for item in self.free]
        for i, name in enumerate(table.place.names):
            column = [nbytes[i] for nbytes in memory]
            room = self.left[name] - (0 if buffered else table.buffers[i])
            follows = self.embedding is None
            lows.append(self._with_embedding(table, i, column, room) if follows else _sliding(column, room))
        return [max(of_members) for of_members in zip(*lows, strict=True)]

    def _with_embedding(self, table: Table, i: int, column: list[int], room: int) -> list[int]:
        """What _sliding gives, where the embedding goes with the first item: a tied output is part of it."""
        output, tied = self.p.forced.get(self.items[-1]), 0
        if output:
            tied = dict(zip(output.place.names, output.tied, strict=True)).get(table.place.names[i], 0)
        column[0] += table.embedding[i] - tied
        lows = _sliding(column, room)
        if output is None and sum(column) - table.tied[i] <= room:  # one run has both
            lows[-1] = 0
        return lows

    def _walked(self, back: list[list[tuple[int, int]]], p: int) -> dict[int, Place]:
        placed, j = {}, len(self.free)
        while j:
            i, before = back[p][j]
            placed.update(dict.fromkeys(self.free[i:j], self.p.places[p].place))
            j, p = i, before
        return placed

    def _made(self, total: int, placed: dict[int, Place]) -> Layout:
        places = tuple(self.p.forced[i].place if i in self.p.forced else placed[i] for i in self.items)
        loads, tables = dict(self.loads), {table.place.names: table for table in self.p.places}
        for i, place in placed.items():
            for name in place.names:
                loads[name] += tables[place.names].batch[i]
        embedding = self.p.embedding.place if self.p.embedding else places[0]
        return Layout(places, embedding, total, max(loads.values()))


def _sliding(column: Sequence[int], limit: int) -> list[int]:
    """For each end j the least i of which column[i:j] sums to the limit at most (j, where nothing does)."""
    lows, low, total = [0], 0, 0
    for j, n in enumerate(column, 1):
        total += n
        while low < j and total > limit:
            total -= column[low]
            low += 1
        lows.append(low)
    return lows
