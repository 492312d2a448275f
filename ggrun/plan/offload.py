"""Which feed-forwards of the CPU a card computes where a batch is large, and how large it must be.

Their weights come to the card for it, as they do in llama.cpp from 32 tokens on; here from where the measured
speeds say that it pays.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from ggrun.plan import Plan, Stage, host_of, whole
from ggrun.plan.cost import Clock, Place
from ggrun.plan.facts import ModelFacts
from ggrun.plan.hardware import DeviceInfo
from ggrun.plan.usage import Sizes, working

SLOTS = 2
"""Of a card: while it computes with the weights in one, the other is filled."""


@dataclass(frozen=True)
class Offload:
    """A stage that a card computes instead of the CPU.

    least     for batches of so many tokens or more
    nbytes    of each of the card's slots
    """

    card: str
    least: int
    nbytes: int


Offloads = Mapping[int, Offload]
"""By the numbers of stages."""
NONE: Offloads = MappingProxyType({})


def offloads(
    facts: ModelFacts, plan: Plan, sizes: Sizes, devices: Mapping[str, DeviceInfo], room: Mapping[str, int]
) -> Offloads:
    """What pays, where there is room.

    room    bytes that the plan leaves free on each device
    """
    clock, found = Clock(facts, sizes, plan.kv_on_host), dict[str, dict[int, int]]()
    for i, card in _candidates(plan).items():
        place = Place((devices["cpu"],), plan.stages[i].members)
        if least := _least(clock, plan.stages[i].halves[0], place, devices[card]):
            found.setdefault(card, {})[i] = least
    made: dict[int, Offload] = {}
    for card, stages in found.items():
        halves = [plan.stages[i].halves[0] for i in stages]
        nbytes = max(_slot(facts, half) for half in halves)
        needed = slot_bytes(facts, halves) + _more_buffers(facts, plan, sizes, card, len(devices) - 1)
        if needed <= room[card]:
            made |= {i: Offload(card, least, nbytes) for i, least in stages.items()}
    return made


def slot_bytes(facts: ModelFacts, halves: Sequence[int]) -> int:
    """What a card needs beside buffers to compute these feed-forwards: slots; vectors, which stay there."""
    vectors = sum(facts.part(half).vectors for half in halves)
    return SLOTS * max(_slot(facts, half) for half in halves) + vectors


def _slot(facts: ModelFacts, half: int) -> int:
    part = facts.part(half)
    return part.total + part.padding


def _candidates(plan: Plan) -> dict[int, str]:
    """The stages that are a feed-forward on the CPU, behind a stage of a card of this machine; the card."""
    found: dict[int, str] = {}
    for i in range(1, len(plan.stages) - 1):
        giver, stage = plan.stages[i - 1].members[0].device, plan.stages[i]
        if _is_feed_forward(stage) and stage.members[0].device == "cpu" and _has_slots(giver):
            found[i] = giver
    return found


def _is_feed_forward(stage: Stage) -> bool:
    begin, end = stage.halves
    return len(stage.members) == 1 and begin % 2 == 1 and end == begin + 1


def _has_slots(device: str) -> bool:
    """Whether it has memory of its own, here: what pretends to be a card by the name cpu:0 has the host's."""
    return not host_of(device) and not device.startswith("cpu")


def _least(clock: Clock, half: int, cpu: Place, card: DeviceInfo) -> int:
    """The fewest tokens that the card is done with sooner; 0: there are none."""

    def pays(tokens: int) -> bool:
        return clock.offloaded(half, card, tokens) < clock.batch(half, cpu, tokens)

    # Once it pays it goes on to: each token takes the CPU longer than the card.
    least = 1 + bisect_left(range(1, clock.micro_batch + 1), True, key=pays)
    return least if least <= clock.micro_batch else 0


def _more_buffers(facts: ModelFacts, plan: Plan, sizes: Sizes, card: str, peers: int) -> int:
    """The bytes of buffers that a card needs which else computes a share of feed-forwards only."""
    all_of_it = whole(facts.config, card)
    shares = [m for stage in plan.stages for m in stage.members if m.device == card]
    if any((m.heads, m.ff) == (all_of_it.heads, all_of_it.ff) for m in shares):
        return 0
    return working(facts, all_of_it, sizes, peers)
