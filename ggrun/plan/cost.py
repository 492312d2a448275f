"""How long a plan takes: a token of one sequence, and a prompt in micro-batches.

A roofline a half layer: it reads its bytes at the speed of memory, or computes at the speed of arithmetic,
whichever takes longer, and pays for its launches. Times are whole picoseconds, so that sums are exact and two
plans can be compared.

Two numbers of a device say all that is not its memory and arithmetic, `efficiency` and `half_layer`: see
hardware.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from ggrun.plan import Member, Plan, host_of, whole
from ggrun.plan.facts import ModelFacts
from ggrun.plan.hardware import DeviceInfo, card_name
from ggrun.plan.usage import Sizes

HOP = 20e-6
"""Seconds that a message between two devices takes, however short it is, where that was not measured."""
DEPTH = 512
"""Tokens in the context for which a token's time is predicted: as tg512 has them, at most."""
PROMPT = 2048
"""Tokens of the prompt whose time is predicted, at most."""


@dataclass(frozen=True)
class Place:
    """Where items may go: a device, or several that share each of them."""

    devices: tuple[DeviceInfo, ...]
    members: tuple[Member, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The devices' names."""
        return tuple(device.name for device in self.devices)


@dataclass(frozen=True)
class Speed:
    """What is predicted of a plan."""

    token: int  # picoseconds of a token at DEPTH
    last: int  # picoseconds of the last token that the context holds
    prompt: int  # picoseconds of the prompt
    prompt_tokens: int
    busy: dict[str, int]  # of a token, the picoseconds that each device works, without ways between them

    @property
    def pace(self) -> int:
        """What plans are compared by: the time of a token written and a token read, prompt_tokens times."""
        return self.prompt_tokens * self.token + self.prompt

    @property
    def decode(self) -> float:
        """Tokens a second, when the context is nearly empty."""
        return 1e12 / self.token

    @property
    def last_decode(self) -> float:
        """Tokens a second, when the context is full."""
        return 1e12 / self.last

    @property
    def prefill(self) -> float:
        """Tokens of the prompt a second."""
        return self.prompt_tokens * 1e12 / self.prompt


class Clock:
    """Predicts times for one model and one choice of sizes."""

    def __init__(self, facts: ModelFacts, sizes: Sizes, kv_on_host: bool = False) -> None:
        self._facts, self._sizes, self._kv_on_host = facts, sizes, kv_on_host
        self._depth = min(DEPTH, sizes.n_ctx)
        self.prompt_tokens = min(PROMPT, sizes.n_ctx)
        self.micro_batch = min(sizes.tokens, self.prompt_tokens)
        self.micro_batches = -(-self.prompt_tokens // self.micro_batch)

    def token(self, item: int, place: Place) -> int:
        """Picoseconds of an item for one token."""
        return self._item(item, place, 1, self._depth)

    def share(self, item: int, member: Member, device: DeviceInfo) -> int:
        """Picoseconds that one member of a place works on an item, for one token."""
        return self._share(item, member, device, 1, self._depth)

    def last_token(self, item: int, place: Place) -> int:
        """The same for the last token that the context holds."""
        return self._item(item, place, 1, self._sizes.n_ctx)

    def batch(self, item: int, place: Place, tokens: int | None = None) -> int:
        """Picoseconds of an item for a micro-batch of a prompt, or for so many tokens of one."""
        return self._item(item, place, tokens or self.micro_batch, self.prompt_tokens // 2)

    def offloaded(self, item: int, card: DeviceInfo, tokens: int | None = None) -> int:
        """The same for a feed-forward whose weights come to a card for it, while it computes others.

        So what takes longer counts, the way or the work.
        """
        way = _ps(self._facts.part(item).total / card.link)
        member = whole(self._facts.config, card.name)
        return max(way, self._share(item, member, card, tokens or self.micro_batch, 0))

    def both(self, token: int, batch: int) -> int:
        """What plans are compared by: of a token that is written and one that is read, prompt_tokens times.

        The prompt's part is without what its other micro-batches wait for.
        """
        return self.prompt_tokens * token + batch

    def move(self, source: Sequence[DeviceInfo], target: Sequence[DeviceInfo], tokens: int = 1) -> int:
        """Picoseconds of handing the residual stream on; 0 when all stay where they are."""
        if [d.name for d in source] == [d.name for d in target]:
            return 0
        # Each receiver has it from the sender at its place, as engine/stage.py sends.
        n = min(len(source), len(target))
        return _ps(max(self._sends(source[i], target[i::n], tokens) for i in range(n)))

    def back(self, source: DeviceInfo) -> int:
        """Picoseconds of one token's logits on their way home, from another machine."""
        return _ps(source.latency + 4 * self._facts.config.vocab / source.network) if source.network else 0

    def _all_reduce(self, devices: Sequence[DeviceInfo], tokens: int) -> int:
        """The faster of the two ways of devices/exchange.py: each sends what it has to all others; or a share
        to each, and then its share of the sums. The slowest device counts."""

        def slowest(rows: float) -> float:
            return max(self._sends(giver, devices, rows) for giver in devices)

        return _ps(min(slowest(tokens), 2 * slowest(tokens / len(devices))))

    def _sends(self, giver: DeviceInfo, takers: Sequence[DeviceInfo], tokens: float) -> float:
        """Seconds of copying so many rows of the residual stream to others, one copy after the other."""
        ways = [_way(giver, taker) for taker in takers if taker.name != giver.name]
        nbytes = 4 * tokens * self._facts.config.width
        return max((latency for latency, _ in ways), default=0.0) + nbytes * sum(each for _, each in ways)

    def _item(self, item: int, place: Place, tokens: int, depth: int) -> int:
        pairs = zip(place.members, place.devices, strict=True)
        longest = max(self._share(item, member, device, tokens, depth) for member, device in pairs)
        if item == len(self._facts.parts):  # the logits are not summed
            return longest + self.back(place.devices[0])
        if len(place.members) == 1:
            return longest
        return longest + self._all_reduce(place.devices, tokens)

    def _share(self, item: int, member: Member, device: DeviceInfo, tokens: int, depth: int) -> int:
        facts, part, c = self._facts, self._facts.part(item), self._facts.config
        if item == len(facts.parts):
            read = facts.of(part.read, member) + facts.tied_output("nbytes", member)
            weights = facts.of(part.weights, member) + facts.tied_output("weights", member)
            floats = facts.of(part.floats, member) + facts.tied_output("floats", member)
            slow = facts.of(part.slow, member) + facts.tied_output("slow", member)
            tokens = 1  # of a prompt, only the last token's logits are wanted
        else:
            read, weights = facts.of(part.read, member), facts.of(part.weights, member)
            floats, slow = facts.of(part.floats, member), facts.of(part.slow, member)
            if part.experts:  # many tokens together use all experts
                read = min(facts.of(part.nbytes, member), read * tokens)
        seconds = read / (device.bandwidth * device.efficiency)
        if item % 2 == 0 and item < len(facts.parts):
            cells = facts.cell_bytes(member, self._sizes.keys, self._sizes.values) * depth
            over_link = self._kv_on_host and not device.host
            seconds += cells / (device.link if over_link else device.bandwidth * device.efficiency)
            weights += (member.heads[1] - member.heads[0]) * (c.key_dim + c.value_dim) * depth
        return _ps(max(seconds, device.products(weights, floats, slow, tokens)) + device.half_layer)


def predict(
    facts: ModelFacts,
    plan: Plan,
    sizes: Sizes,
    devices: Mapping[str, DeviceInfo],
    offloaded: Mapping[int, str] = MappingProxyType({}),
) -> Speed:
    """The times of a plan. offloaded: the stages that cards compute for prompts, by number (offload.py)."""
    clock, flow = Clock(facts, sizes, plan.kv_on_host), [0, 0, 0]
    busy: dict[str, int] = {}
    batch: dict[str, int] = {}
    before: tuple[DeviceInfo, ...] = ()
    read_before: tuple[DeviceInfo, ...] = ()
    for i, stage in enumerate(plan.stages):
        place = Place(tuple(devices[m.device] for m in stage.members), stage.members)
        items = [*range(*stage.halves), *([len(facts.parts)] if stage is plan.stages[-1] else [])]
        token = sum(clock.token(item, place) for item in items)
        readers = place.devices
        if i in offloaded:
            readers = (card := devices[offloaded[i]],)
            prompt = clock.offloaded(stage.halves[0], card)
        else:
            prompt = sum(clock.batch(item, place) for item in items)
        for member, device in zip(place.members, place.devices, strict=True):
            alone = sum(clock.share(item, member, device) for item in items)
            busy[device.name] = busy.get(device.name, 0) + alone
        for device in readers:
            batch[device.name] = batch.get(device.name, 0) + prompt
        flow[0] += token + (clock.move(before, place.devices) if before else 0)
        flow[2] += sum(clock.last_token(item, place) for item in items) - token
        flow[1] += prompt + (clock.move(read_before, readers, clock.micro_batch) if before else 0)
        before, read_before = place.devices, readers
    # Micro-batches follow each other as closely as the device with the most to do lets them.
    prompt_time = flow[1] + (clock.micro_batches - 1) * max(batch.values())
    return Speed(flow[0], flow[0] + flow[2], prompt_time, clock.prompt_tokens, busy)


def _way(giver: DeviceInfo, taker: DeviceInfo) -> tuple[float, float]:
    """Seconds that a copy takes however short it is, and seconds a byte."""
    if card_name(giver.name) == card_name(taker.name):  # a copy within it reads and writes
        return HOP, 2 / giver.bandwidth
    if host_of(giver.name) != host_of(taker.name):  # by way of both machines' hosts, and the network
        links = (giver.link, taker.link, *(d.network for d in (giver, taker) if d.network))
        return HOP + giver.latency + taker.latency, 1 / min(links)
    if link := giver.link_to(taker):
        return link.latency, 1 / link.bandwidth
    return HOP, 1 / min(giver.link, taker.link)


def _ps(seconds: float) -> int:
    return round(seconds * 1e12)
