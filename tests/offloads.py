"""Plans that leave feed-forwards to a CPU, and cards that compute them for large batches."""

from collections.abc import Sequence
from dataclasses import replace

from gguf import GGMLQuantizationType

from ggrun.arch.config import Config
from ggrun.devices.base import Device
from ggrun.devices.cpu import Cpu
from ggrun.engine.engine import Engine
from ggrun.gguf import GGUF
from ggrun.plan import Plan, Stage, whole
from ggrun.plan.facts import ModelFacts
from ggrun.plan.hardware import parse_devices
from ggrun.plan.offload import Offload, Offloads, offloads
from ggrun.plan.usage import Sizes, plan_use
from tests.cuda.models import cards
from tests.tiny import Tiny

LAYERS, LEAST, ROOM = 6, 9, 1 << 20
TOKENS = [i * 7 % 36 for i in range(60)]
Q8_0 = GGMLQuantizationType.Q8_0
MODELS = {
    "dense": Tiny(layers=LAYERS),
    "experts": Tiny(arch="qwen3moe", head_norms=True, layers=4, experts=7, experts_used=3),
    "q8_0": Tiny(layers=4, width=128, ff=160, format=Q8_0),
}


def beside_the_cpu(config: Config, cards: Sequence[str]) -> Plan:
    """All feed-forwards on the CPU; the attention of the first layers, and so on, on each of the cards."""
    layers = config.layers
    owners = [cards[i * len(cards) // layers] for i in range(layers)]
    halves = [(owner, "cpu")[half % 2] for owner in owners for half in (0, 1)]
    stages = [Stage((i, i + 1), (whole(config, name),)) for i, name in enumerate(halves)]
    return Plan((*stages, Stage((2 * layers, 2 * layers), (whole(config, cards[-1]),))))


def offloads_of(plan: Plan, least: int = LEAST, nbytes: int = ROOM) -> Offloads:
    """Every feed-forward by the card before it."""
    behind = {i: plan.stages[i - 1].members[0].device for i in range(1, len(plan.stages) - 1, 2)}
    return {i: Offload(card, least, nbytes) for i, card in behind.items()}


def cuda_machine(
    model: GGUF, seed: int, limit: int = 1 << 30, offloads: Offloads | None = None
) -> tuple[dict[str, Device], Engine]:
    """All feed-forwards on a CPU, and computed by an emulated CUDA card."""
    config = Config.from_gguf(model)
    devices = {"cpu": Cpu(2), **cards(1, seed=seed, limit=limit)}
    plan = beside_the_cpu(config, ["cuda:0"])
    offloads = offloads or offloads_of(plan)
    return devices, Engine(model, config, plan, devices, Sizes(64, 16), offloads=offloads)


def least_room(model: GGUF, card: str) -> int:
    """The bytes of a card with which the planner has it compute the CPU's feed-forwards, and no byte less."""
    facts = ModelFacts.from_outline(model)
    plan, sizes = beside_the_cpu(facts.config, [card]), Sizes(64, 16)
    fast, cpu = parse_devices("rtx3090,cpu:64GB@50GB/s")
    devices = {card: replace(fast, name=card, link=1e15), "cpu": cpu}
    taken = plan_use(facts, plan, sizes, 1)[card].total
    low, high = 0, 1 << 30
    while high - low > 1:
        middle = (low + high) // 2
        found = offloads(facts, plan, sizes, devices, {card: middle})
        low, high = (low, middle) if len(found) == facts.config.layers else (middle, high)
    return taken + high
