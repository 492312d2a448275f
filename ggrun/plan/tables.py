"""What every item costs at one place, worked out once: the numbers that `solve` adds up.

An item is a half layer, or the output (2 * layers). Memory is an upper bound of what usage.py counts of the
finished plan, and mostly that.
"""

from dataclasses import dataclass, field
from functools import cached_property

from ggrun.plan.cost import Clock, Place
from ggrun.plan.facts import EMBEDDING, PAGE, ModelFacts
from ggrun.plan.usage import Sizes, item_use, output_working, working


@dataclass(frozen=True)
class Sums:
    """The model, the sizes, and what follows from both for each place."""

    facts: ModelFacts
    sizes: Sizes
    kv_on_host: bool = False
    peers: int = 0  # devices that may hand something to another one
    tables: dict[Place, "Table"] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def clock(self) -> Clock:
        """Predicts times."""
        return Clock(self.facts, self.sizes, self.kv_on_host)

    @cached_property
    def kv_total(self) -> int:
        """The bytes of the whole KV cache."""
        return self.sizes.pages * PAGE * self.facts.position_bytes(self.sizes.keys, self.sizes.values)

    def table(self, place: Place) -> "Table":
        """The numbers of a place, worked out once."""
        if place not in self.tables:
            self.tables[place] = Table(self, place)
        return self.tables[place]


class Table:
    """Times in picoseconds by item, bytes by member and item."""

    def __init__(self, sums: Sums, place: Place) -> None:
        self.place, facts = place, sums.facts
        token = {kind: sums.clock.token(kind, place) for kind in set(facts.kinds)}
        batch = {kind: sums.clock.batch(kind, place) for kind in set(facts.kinds)}
        self.token = [token[kind] for kind in facts.kinds]
        self.batch = [batch[kind] for kind in facts.kinds]
        self.cost = [sums.clock.both(*pair) for pair in zip(self.token, self.batch, strict=True)]
        self.memory = [self._memory(sums, i) for i in range(len(place.members))]
        self.buffers = [working(facts, m, sums.sizes, sums.peers) for m in place.members]
        # What the output takes less where the embedding is, as both are one.
        self.tied = [facts.tied_output("nbytes", member) for member in place.members]
        self.embedding = [_bytes(sums, EMBEDDING, i, place) for i in range(len(place.members))]

    def _memory(self, sums: Sums, i: int) -> list[int]:
        facts = sums.facts
        of_kind = {kind: _bytes(sums, kind, i, self.place) for kind in set(facts.kinds)}
        of_kind[len(facts.parts)] += output_working(facts, self.place.members[i], sums.sizes)
        return [of_kind[kind] for kind in facts.kinds]


def _bytes(sums: Sums, item: int, i: int, place: Place) -> int:
    use = item_use(sums.facts, item, place.members[i], sums.sizes)
    return use.total - (use.kv if sums.kv_on_host else 0)
