"""Makes plans: fills what the user left open, keeps what he set, and takes the fastest that fits."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

from ggrun.plan import Plan, Stage, whole
from ggrun.plan.choice import Choice
from ggrun.plan.cost import Place, Speed, predict
from ggrun.plan.facts import EMBEDDING, PAGE, ModelFacts
from ggrun.plan.hardware import DeviceInfo
from ggrun.plan.options import PlanOptions
from ggrun.plan.rows import candidates, proportional, shared
from ggrun.plan.solve import NEVER, Layout, Problem, solvable, solve
from ggrun.plan.tables import Sums, Table
from ggrun.plan.usage import Sizes, Use, plan_use

_LARGEST_CONTEXT = 1 << 24  # looked for: sixteen million positions
_SHARES = 256  # steps of a card's memory
_NEARLY = 100  # the part of its time that a plan may lose where cards are to be used alike


@dataclass(frozen=True)
class Settled:
    """What the planner chose of what the user left open, beside the layout.

    cpu_ffn   feed-forward halves that it left to the CPU
    ratios    of a row stage
    first     the first item on cards, where -ts says how they share what is behind it; None: no such thing
    """

    cpu_ffn: int = 0
    ratios: tuple[float, ...] = ()
    first: int | None = None


@dataclass(frozen=True)
class Planned:
    """A plan, and what is known of it before anything is loaded."""

    facts: ModelFacts
    options: PlanOptions
    devices: tuple[DeviceInfo, ...]
    choice: Choice
    plan: Plan
    sizes: Sizes
    settled: Settled
    own: bool = False  # the user wrote the plan: flags only said the sizes

    @cached_property
    def uses(self) -> dict[str, Use]:
        """The bytes that are taken of each device."""
        return plan_use(self.facts, self.plan, self.sizes, len(self.devices) - 1)

    @cached_property
    def limits(self) -> dict[str, int]:
        """The bytes that may be taken of each."""
        return limits(self.devices, self.options)

    @cached_property
    def speed(self) -> Speed:
        """What is predicted."""
        return predict(self.facts, self.plan, self.sizes, {device.name: device for device in self.devices})

    @property
    def over(self) -> dict[str, int]:
        """The bytes that devices lack."""
        return {
            name: use.total - n for name, use in self.uses.items() if use.total > (n := self.limits[name])
        }

    @property
    def fits(self) -> bool:
        """Whether it does."""
        return not self.over

    @cached_property
    def context_as_laid_out(self) -> int:
        """The most positions that there is memory for, with all layers where they are; 0: for none."""
        found = PAGE * _most(lambda pages: self._holds(pages * PAGE))
        # A whole page more may bring a larger micro-batch with it.
        return max(found, self.sizes.n_ctx if self.fits else 0)

    @cached_property
    def largest_context(self) -> int:
        """The most positions that there is memory for, with any layout that the user's flags allow."""
        if self.own:
            return self.context_as_laid_out
        planner = _Planner(self.facts, self.devices, self.options)
        return max(planner.largest_context(), self.context_as_laid_out)

    def _holds(self, n_ctx: int) -> bool:
        sizes = replace(self.sizes, n_ctx=n_ctx)
        uses = plan_use(self.facts, self.plan, sizes, len(self.devices) - 1)
        return all(use.total <= self.limits[name] for name, use in uses.items())


def limits(devices: Sequence[DeviceInfo], options: PlanOptions) -> dict[str, int]:
    """The bytes of each device that a plan may take. The CPU is one even where it is not listed."""
    found = {device.name: device.usable(options.fit_margin << 20) for device in devices}
    return {"cpu": 0, **found}


def make_plan(facts: ModelFacts, devices: Sequence[DeviceInfo], options: PlanOptions) -> Planned:
    """The fastest plan that fits; or, when none does, one to show by how much (see Planned.fits).

    UsageError where flags, devices and model do not go together.
    """
    return _Planner(facts, tuple(devices), options).planned()


Found = tuple[Layout, Settled]
Trial = tuple[Problem, Settled]


class _Planner:
    def __init__(self, facts: ModelFacts, devices: tuple[DeviceInfo, ...], options: PlanOptions) -> None:
        self.facts, self.devices, self.options = facts, devices, options
        self.choice = Choice.of(facts, devices, options)
        self.layers = facts.config.layers
        self.first = self.choice.first_on_cards(options, self.layers)
        if not options.fit and self.first is None:
            self.first = 0 if self.choice.cards else None

    def planned(self) -> Planned:
        """The plan for the context that was asked for, or that fits."""
        sums = self._sums(self._context())
        found = self._best(sums, spill=True)
        if found is None:
            problem, settled = self._last_resort(sums)
            unlimited = dict.fromkeys(problem.limits, 1 << 80)
            layout = solve(replace(problem, limits=unlimited))
            assert layout is not None, "without limits there is always a layout"
        else:
            layout, settled = found
        plan = _plan(self.facts, layout, sums.kv_on_host)
        return Planned(self.facts, self.options, self.devices, self.choice, plan, sums.sizes, settled)

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
        """The most positions for which any of the problems can be solved; 0: for none."""
        best = 0
        for i in itertools.count():
            # One try tells whether the i-th problem can do better than those before it; most cannot.
            solved = self._solvable(i, best + 1)
            if solved is None:
                return best * PAGE
            if solved:
                best = _most(partial(self._solvable, i), best + 1)
        raise AssertionError("counted to the end")

    def _solvable(self, i: int, pages: int) -> bool | None:
        """Whether there is a layout for the i-th problem; None where there are not so many problems."""
        problems = self._problems(self._sums(pages * PAGE), spill=True)
        numbered = next(itertools.islice(problems, i, None), None)
        return None if numbered is None else solvable(numbered[0])

    def _possible(self, n_ctx: int) -> bool:
        sums = self._sums(n_ctx)
        found = self._problems(sums, spill=False)
        return any(solvable(problem) for problem, _ in found) or bool(self._on_one_place(sums))

    # ---------------------------------------------------------------- what is tried

    def _best(self, sums: Sums, spill: bool) -> Found | None:
        best: Found | None = None
        for problem, settled in self._problems(sums, spill):
            below = best[0].pace if best else NEVER
            if _bound(problem) < below and (found := solve(problem, below)):
                best = found, settled
        if best and self._spreads():
            best = self._spread(sums, best, spill)
        alone = self._on_one_place(sums)
        return (alone, Settled()) if alone and (best is None or alone.pace < best[0].pace) else best

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
        for problem, settled in self._problems(sums, spill):
            may = {n: b if n == "cpu" else b * share // _SHARES for n, b in problem.limits.items()}
            if found := solve(replace(problem, limits=may), best[0].pace if best else slowest + 1):
                best = found, settled
        return best

    def _problems(self, sums: Sums, spill: bool) -> Iterator[Trial]:
        """All that is tried.

        What there is does not depend on memory, so that more of it never gives a slower plan.
        """
        for ratios, places in self._places(sums):
            for cpu_ffn in self._cpu_ffn(spill, ratios):
                for first in self._firsts(spill):
                    problem = self._problem(sums, places, cpu_ffn, first, spill)
                    yield problem, Settled(cpu_ffn, ratios, None if self._split() is None else first)

    def _places(self, sums: Sums) -> Iterator[tuple[tuple[float, ...], list[Table]]]:
        """The cards as places: each its own; or one for all of them, in each way to share."""
        cards = self.choice.cards
        if not self.options.rows or len(cards) < 2:
            yield (), [sums.table(self._alone(card)) for card in cards]
            return
        given = self.options.tensor_split
        for ratios in [tuple(given)] if given else candidates([card.bandwidth for card in cards]):
            yield ratios, [sums.table(self._together(ratios))]

    def _alone(self, device: DeviceInfo) -> Place:
        return Place((device,), (whole(self.facts.config, device.name),))

    def _together(self, ratios: Sequence[float]) -> Place:
        used = [(card, ratio) for card, ratio in zip(self.choice.cards, ratios, strict=True) if ratio]
        cards = tuple(card for card, _ in used)
        if len(cards) == 1:
            return self._alone(cards[0])
        return Place(cards, shared(self.facts, [card.name for card in cards], [ratio for _, ratio in used]))

    def _cpu_ffn(self, spill: bool, ratios: tuple[float, ...]) -> range:
        """How many feed-forwards the CPU may take: any number, where the user left it open.

        With rows only for shares in proportion to the cards: the product of both choices is too large.
        """
        first = not ratios or ratios == proportional([card.bandwidth for card in self.choice.cards])
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

    def _problem(
        self, sums: Sums, cards: list[Table], cpu_ffn: int, first: int | None, spill: bool
    ) -> Problem:
        choice, forced, host = self.choice, dict[int, Table](), self._host_table(sums)
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

    def _on_one_place(self, sums: Sums) -> Layout | None:
        """Everything on one device, counted exactly: `solve` counts a tied embedding twice."""
        devices = self.choice.cards or (self.choice.host,)
        said = self.options.tensor_split is not None and len(devices) > 1
        if self.choice.given or self.first or said:
            return None
        found = [self._everything_on(sums, device) for device in devices if device is not None]
        return min((f for f in found if f is not None), key=lambda f: f.pace, default=None)

    def _everything_on(self, sums: Sums, device: DeviceInfo) -> Layout | None:
        place = self._alone(device)
        embedding = self._alone(self.choice.host) if self.choice.host else place
        layout = Layout((place,) * self.facts.items, embedding, 0, 0)
        plan, may = _plan(self.facts, layout, sums.kv_on_host), limits(self.devices, self.options)
        uses = plan_use(self.facts, plan, sums.sizes, sums.peers)
        if any(use.total > may[name] for name, use in uses.items()):
            return None
        speed = predict(self.facts, plan, sums.sizes, {device.name: device for device in self.devices})
        return replace(layout, pace=speed.pace)

    def _last_resort(self, sums: Sums) -> Trial:
        """What to show when nothing fits: as the user said, and otherwise in proportion to the memory."""
        may = self._limits(sums)
        ratios = [max(1.0, float(may[card.name])) for card in self.choice.cards]
        split = self.options.tensor_split or (ratios if len(ratios) > 1 else None)
        fallback = replace(self.options, tensor_split=split)
        stand_in = _Planner(self.facts, self.devices, fallback)
        stand_in.first = self.first if self.first is not None else (0 if self.choice.cards else None)
        return next(stand_in._problems(sums, spill=False))


def _most(holds: Callable[[int], bool | None], low: int = 0) -> int:
    """The most pages for which something holds that holds for `low`."""
    high = _LARGEST_CONTEXT // PAGE
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low


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
