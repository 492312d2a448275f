"""Makes plans: fills what the user left open, keeps what he set, and takes the fastest that fits."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice

from ggrun.plan import Plan, Stage, host_of, whole
from ggrun.plan.choice import Choice
from ggrun.plan.cost import Place
from ggrun.plan.facts import EMBEDDING, PAGE, ModelFacts
from ggrun.plan.hardware import DeviceInfo
from ggrun.plan.offload import slot_bytes
from ggrun.plan.options import PlanOptions
from ggrun.plan.planned import Planned, Settled, limits, most_pages
from ggrun.plan.rows import candidates, proportional, shared
from ggrun.plan.solve import NEVER, Layout, Problem, solvable, solve
from ggrun.plan.tables import Sums, Table
from ggrun.plan.usage import Sizes

_SHARES = 256  # steps of a card's memory
_NEARLY = 100  # the part of its time that a plan may lose where cards are to be used alike


def make_plan(facts: ModelFacts, devices: Sequence[DeviceInfo], options: PlanOptions) -> Planned:
    """The fastest plan that fits; or, when none does, one to show by how much (see Planned.fits).

    UsageError where flags, devices and model do not go together.
    """
    if options.split_mode == "auto":
        far = any(host_of(device.name) for device in devices)  # which is faster is tried on one machine
        modes = ("layer",) if far else ("layer", "row")
        plans = [make_plan(facts, devices, options.in_mode(mode)) for mode in modes]
        return min(plans, key=lambda planned: (not planned.fits, planned.speed.pace))
    return _Planner(facts, tuple(devices), options).planned()


Found = tuple[Layout, Settled]


def largest_context(planned: Planned) -> int:
    """The most positions that there is memory for, with any layout that the user's flags allow; 0: none."""
    if planned.own:
        return planned.context_as_laid_out
    planner = _Planner(planned.facts, planned.devices, planned.options)
    return max(planner.largest_context(), planned.context_as_laid_out)


class _Planner:
    def __init__(self, facts: ModelFacts, devices: tuple[DeviceInfo, ...], options: PlanOptions) -> None:
        self.facts, self.devices, self.options = facts, devices, options
        self.choice = Choice.of(facts, devices, options)
        self.layers = facts.config.layers
        self.first = self.choice.first_on_cards(options, self.layers)
        if not options.fit and self.first is None:
            self.first = 0 if self.choice.cards else None
        self._made: dict[tuple[float, ...], list[Place]] = {}

    def planned(self) -> Planned:
        """The plan for the context that was asked for, or that fits."""
        sums = self._sums(self._context())
        found = self._best_on_named(sums) or self._best(sums, spill=True)
        layout, settled = found or self._to_show(sums)
        planned = self._made_of(sums, layout, settled, tried=found is not None)
        if planned.fits and self._slots_are_open() and _overflows(planned.plan):
            others = self._with_slots(sums)
            return min([planned, *others], key=lambda made: made.speed.pace)
        return planned

    def _best_on_named(self, sums: Sums) -> Found | None:
        """Without the CPU where all fits on the cards that the user names, which are wanted, slow or not."""
        return self._best(sums, spill=False) if self.options.order else None

    def _made_of(self, sums: Sums, layout: Layout, settled: Settled, tried: bool = True) -> Planned:
        plan = _plan(self.facts, layout, sums.kv_on_host)
        made = self.facts, self.options, self.devices, self.choice, plan, sums.sizes, settled
        return Planned(*made, tried=tried)

    def _slots_are_open(self) -> bool:
        """Whether cards may compute feed-forwards for the CPU that the planner leaves to it."""
        o, both = self.options, self.choice.host and self.choice.cards
        return bool(both and o.op_offload and o.fit and o.cpu_halves_open and not o.rows)

    def _with_slots(self, sums: Sums) -> Iterator[Planned]:
        """A plan that leaves the cards room for that: the CPU has nothing else, and as few as can be."""
        for cpu_ffn in range(1, self.layers + 1):
            problem = self._problem(sums, settled := Settled(cpu_ffn), spill=False)
            slots = slot_bytes(self.facts, range(1, 2 * cpu_ffn, 2))
            limits = {name: n if name == "cpu" else n - slots for name, n in problem.limits.items()}
            if layout := solve(replace(problem, limits=limits)):
                yield self._made_of(sums, layout, settled)
                return

    # ---------------------------------------------------------------- the context

    def _sums(self, n_ctx: int) -> Sums:
        o = self.options
        sizes = Sizes(n_ctx, o.n_ubatch, o.sequences, o.cache_type_k, o.cache_type_v)
        peers = len(self.devices) - 1
        return Sums(self.facts, sizes, not o.kv_offload, peers)

    def _context(self) -> int:
        """What the user said; or the model's, or as much as fits without the CPU, but fit_ctx at least."""
        largest = self.facts.config.context
        least = min(self.options.fit_ctx, largest)
        if self.options.n_ctx or not self.options.fit:
            return self.options.n_ctx or largest
        if self._possible(largest) or not self._possible(least):
            return largest if self._possible(largest) else least
        low, high = least // PAGE, -(-largest // PAGE)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._possible(middle * PAGE) else (low, middle)
        return max(least, low * PAGE)

    def largest_context(self) -> int:
        """The most positions for which any trial has a layout; 0: for none."""
        best = 0
        for trial in self._trials(spill=True):
            # One try tells whether it can do better than those before it; most cannot.
            if self._solvable(trial, best + 1):
                best = most_pages(partial(self._solvable, trial), best + 1)
        return best * PAGE

    def _solvable(self, trial: Settled, pages: int) -> bool:
        return solvable(self._problem(self._sums(pages * PAGE), trial, spill=True))

    def _possible(self, n_ctx: int) -> bool:
        sums = self._sums(n_ctx)
        found = (self._problem(sums, trial, spill=False) for trial in self._trials(spill=False))
        return any(map(solvable, found))

    # ---------------------------------------------------------------- what is tried

    def _best(self, sums: Sums, spill: bool) -> Found | None:
        best: Found | None = None
        for settled in self._trials(spill):
            problem, below = self._problem(sums, settled, spill), best[0].pace if best else NEVER
            if _bound(problem) < below and (found := solve(problem, below)):
                best = found, settled
        return self._spread(sums, best, spill) if best and self._spreads() else best

    def _spreads(self) -> bool:
        """Whether cards share what the user's flags leave of the layers, and none is to be filled first."""
        o = self.options
        flags = o.cpu_moe or bool(o.n_cpu_moe or o.n_cpu_ffn)
        return flags and not o.rows and self._split() is None and len(self.choice.cards) > 1

    def _spread(self, sums: Sums, best: Found, spill: bool) -> Found:
        """Nearly the best, but with the most room that can be left on the fullest card.

        -cmoe and its kin take so much of some layers that the best cut may leave a card empty.
        """
        low, high, slowest = 0, _SHARES, best[0].pace + best[0].pace // _NEARLY
        while high - low > 1:
            middle = (low + high) // 2
            found = self._within(sums, middle, slowest, spill)
            best, low, high = (found, low, middle) if found else (best, middle, high)
        return best

    def _within(self, sums: Sums, share: int, slowest: int, spill: bool) -> Found | None:
        """The best when of each card only a share may be taken; None when that is too slow."""
        best: Found | None = None
        for settled in self._trials(spill):
            problem = self._problem(sums, settled, spill)
            may = {n: b if n == "cpu" else b * share // _SHARES for n, b in problem.limits.items()}
            if found := solve(replace(problem, limits=may), best[0].pace if best else slowest + 1):
                best = found, settled
        return best

    def _trials(self, spill: bool) -> Iterator[Settled]:
        """All that is tried.

        What there is does not depend on memory, so that more of it never gives a slower plan.
        """
        for ratios in self._ratios():
            for cpu_ffn in self._cpu_ffn(spill, ratios):
                for first in self._firsts(spill):
                    yield Settled(cpu_ffn, ratios, first)

    def _ratios(self) -> Iterator[tuple[float, ...]]:
        """The ways to share rows over the cards; () where each card is a place of its own.

        Of several groups only in proportion to the cards: the product of all choices is too large.
        """
        cards, groups, given = self.choice.cards, self.choice.groups, self.options.tensor_split
        if not self.options.rows or len(cards) < 2:
            yield ()
        elif given:
            yield tuple(given)
        elif len(groups) > 1:
            yield tuple(ratio for group in groups for ratio in proportional([c.bandwidth for c in group]))
        else:
            yield from candidates([card.bandwidth for card in cards])

    def _alone(self, device: DeviceInfo) -> Place:
        return Place((device,), (whole(self.facts.config, device.name),))

    def _places(self, ratios: tuple[float, ...]) -> list[Place]:
        """The cards as places: each its own; or one for each group of them, which share as ratios say."""
        if ratios not in self._made:
            rest, groups = iter(ratios), self.choice.groups
            shares = [(group, tuple(islice(rest, len(group)))) for group in groups]
            together = [self._together(group, share) for group, share in shares if any(share)]
            self._made[ratios] = together or [self._alone(card) for card in self.choice.cards]
        return self._made[ratios]

    def _together(self, group: Sequence[DeviceInfo], ratios: Sequence[float]) -> Place:
        used = [(card, ratio) for card, ratio in zip(group, ratios, strict=True) if ratio]
        cards = tuple(card for card, _ in used)
        if len(cards) == 1:
            return self._alone(cards[0])
        return Place(cards, shared(self.facts, [card.name for card in cards], [ratio for _, ratio in used]))

    def _cpu_ffn(self, spill: bool, ratios: tuple[float, ...]) -> range:
        """How many feed-forwards the CPU may take: any number, where the user left it open.

        With rows only for shares in proportion to the cards: the product of both choices is too large.
        """
        by_speed = ratios == proportional([card.bandwidth for card in self.choice.cards])
        first = not ratios or by_speed or len(self.choice.groups) > 1
        open_ = self.options.cpu_halves_open and self.options.fit and first
        both = self.choice.host is not None and self.choice.cards
        return range(self.layers + 1 if spill and open_ and both else 1)

    def _firsts(self, spill: bool) -> list[int | None]:
        """The first items on cards: as -ngl says, or all possible ones under -ts; None: the layout says."""
        if self.first is not None or self._split() is None:
            return [self.first]
        if not spill or self.choice.host is None:
            return [0]
        return [*range(0, 2 * self.layers + 1, 2), 2 * self.layers + 1]

    def _split(self) -> Sequence[float] | None:
        """The ratios of layers, if the user fixed them."""
        alone = self.options.rows or self.options.split_mode == "none" or len(self.choice.cards) < 2
        return None if alone else self.options.tensor_split

    def _problem(self, sums: Sums, trial: Settled, spill: bool) -> Problem:
        choice, forced, host = self.choice, dict[int, Table](), self._host_table(sums)
        cards, cpu_ffn, first = (
            [sums.table(p) for p in self._places(trial.ratios)],
            trial.cpu_ffn,
            trial.first,
        )
        given = {item: sums.table(self._alone(device)) for item, device in choice.given.items()}
        if host and cpu_ffn:
            forced |= dict.fromkeys(range(1, 2 * cpu_ffn, 2), host)
        if host and first:
            forced |= dict.fromkeys(range(min(first, self.facts.items)), host)
        if (split := self._split()) is not None:
            forced = self._split_up(split, first or 0, cards) | forced
        embedding = given.pop(EMBEDDING, host)
        forced |= given
        places = cards
        if host and (not cards or (spill and first is None)):
            places = [host, *cards]
        return Problem(sums, places, self._limits(sums), forced, embedding)

    def _host_table(self, sums: Sums) -> Table | None:
        return sums.table(self._alone(self.choice.host)) if self.choice.host else None

    def _split_up(self, ratios: Sequence[float], first: int, cards: list[Table]) -> dict[int, Table]:
        """-ts: the items from the first on in proportion to ratios; the output counts as a layer, or two."""
        begin, end, forced = first, 2 * self.layers + 2, dict[int, Table]()
        done, total = 0.0, sum(ratios)
        for ratio, card in zip(ratios, cards, strict=True):
            done += ratio
            stop = first + int((end - first) * done / total + 0.5)
            forced |= dict.fromkeys(range(begin, min(stop, self.facts.items)), card)
            begin = stop
        return forced

    def _limits(self, sums: Sums) -> dict[str, int]:
        found = limits(self.devices, self.options)
        if sums.kv_on_host:
            found["cpu"] -= sums.kv_total
        return found

    def _to_show(self, sums: Sums) -> Found:
        """What to show when nothing that is tried fits: as the user said, and else shared by memory."""
        may = self._limits(sums)
        by_memory = proportional([max(1.0, float(may[card.name])) for card in self.choice.cards])
        split = self.options.tensor_split or (by_memory if len(by_memory) > 1 else None)
        shared_out = _Planner(self.facts, self.devices, replace(self.options, tensor_split=split))
        if shared_out.first is None and self.choice.cards:
            shared_out.first = 0
        trial = next(shared_out._trials(spill=False))
        problem = shared_out._problem(sums, trial, spill=False)
        if self.options.rows and len(problem.places) > 1:  # groups, of which each would take it all
            memory = [sum(max(1.0, float(may[name])) for name in t.place.names) for t in problem.places]
            parts = shared_out._split_up(memory, trial.first or 0, list(problem.places))
            problem = replace(problem, forced=parts | dict(problem.forced))
        layout = solve(replace(problem, limits=dict.fromkeys(problem.limits, 1 << 80)))
        assert layout is not None, "without limits there is always a layout"
        return layout, trial


def _overflows(plan: Plan) -> bool:
    """Whether the CPU has any half layers."""
    return any(s.halves[0] < s.halves[1] and any(m.device == "cpu" for m in s.members) for s in plan.stages)


def _bound(problem: Problem) -> int:
    """No layout of a problem takes less than this."""
    total = 0
    for item in range(problem.sums.facts.items):
        forced = problem.forced.get(item)
        total += forced.cost[item] if forced else min(table.cost[item] for table in problem.places)
    return total


def _plan(facts: ModelFacts, layout: Layout, kv_on_host: bool) -> Plan:
    """A layout as stages."""
    last = 2 * facts.config.layers
    stages: list[tuple[int, int, Place]] = [(0, 0, layout.embedding)]
    for item, place in enumerate(layout.places):
        begin, end, before = stages[-1]
        reach = min(item + 1, last)
        if place == before:
            stages[-1] = (begin, reach, place)
        else:
            stages.append((end, reach, place))
    return Plan(tuple(Stage((a, b), place.members) for a, b, place in stages), kv_on_host)
