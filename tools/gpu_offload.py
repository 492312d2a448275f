"""Feed-forwards that the CPU holds, in prompts: by the CPU, and by the card that their weights come to."""

import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median

import numpy as np

from ggrun.arch.config import Config
from ggrun.devices.base import Device
from ggrun.devices.cpu import Cpu
from ggrun.engine.engine import Engine
from ggrun.engine.generate import usual_top
from ggrun.gguf import GGUF
from ggrun.plan import Plan, Stage, whole
from ggrun.plan.facts import ModelFacts
from ggrun.plan.offload import NONE, Offload, Offloads
from ggrun.plan.usage import Sizes
from tools.gpu_models import SMALL, ready
from tools.gpu_step import Figure, Step
from tools.gpu_time import open_cards

_CARD = "cuda:0"
_LAYERS, _TOKENS, _TIMES = 8, (8, 16, 32, 64, 128, 256, 512), 3
"""As many layers have their feed-forwards on the CPU; the lengths of prompts, and how often each is timed."""


def run(step: Step) -> None:
    """From how many tokens on the card is sooner, and from how many the plan has it do the work."""
    step.attempt("feed-forwards of the CPU in prompts", lambda: _run(step))


def _run(step: Step) -> None:
    path = ready(step, SMALL)
    sizes = _TOKENS[:2] if step.emulated else _TOKENS
    by_cpu, by_card = (_seconds(step, path, sizes, offloaded) for offloaded in (False, True))
    predicted, found = _predicted(step, path), 0
    for n in sizes:
        more = {"by the CPU, ms": 1e3 * by_cpu[n], "by the card, ms": 1e3 * by_card[n]}
        how = f"the host's clock, median of {_TIMES}"
        what = f"prompt of {n}, feed-forwards of {_LAYERS} layers on the CPU: by the card"
        step.tell(Figure(what, by_cpu[n] / by_card[n], "times as fast", how=how, more=more))
    for n in reversed(sizes):
        if by_card[n] >= by_cpu[n]:
            break
        found = n
    what = "fewest tokens, of these, from which on the card is sooner (0: never)"
    step.tell(Figure(what, found, "tokens", how="those above", more={"by ggrun plan": predicted}))


def _seconds(step: Step, path: Path, sizes: tuple[int, ...], offloaded: bool) -> Mapping[int, float]:
    """Of prompts of so many tokens."""
    model = GGUF(path)
    config = Config.from_gguf(model)
    devices: dict[str, Device] = {"cpu": Cpu(2 if step.emulated else None), **open_cards(step.emulated, 1)}
    plan = _plan(config)
    offloads = _offloads(ModelFacts.from_outline(model), plan) if offloaded else NONE
    engine = Engine(model, config, plan, devices, Sizes(max(sizes), max(sizes)), offloads=offloads)
    tokens = np.random.default_rng(1).integers(config.vocab, size=max(sizes)).tolist()
    top, found = usual_top(config.vocab), dict[int, float]()
    for n in sizes:
        times = []
        for _ in range(_TIMES + 1):  # the first may compile
            engine.cache.truncate(0, 0)
            begin = time.perf_counter()
            engine.evaluate(tokens[:n], top=top)
            times.append(time.perf_counter() - begin)
        found[n] = median(times[1:])
    for device in devices.values():
        device.close()
    return found


def _plan(config: Config) -> Plan:
    """All on the card but the feed-forwards of the first layers."""
    layers = min(_LAYERS, config.layers - 1)
    owners = [("cpu", _CARD)[half % 2 == 0] for half in range(2 * layers)]
    stages = [Stage((i, i + 1), (whole(config, name),)) for i, name in enumerate(owners)]
    return Plan((*stages, Stage((2 * layers, 2 * config.layers), (whole(config, _CARD),))))


def _offloads(facts: ModelFacts, plan: Plan) -> Offloads:
    """Each of them by the card, however few tokens there are."""
    halves = [i for i, stage in enumerate(plan.stages) if stage.members[0].device == "cpu"]
    nbytes = max(facts.part(half).total + facts.part(half).padding for half in halves)
    return {half: Offload(_CARD, 1, nbytes) for half in halves}


def _predicted(step: Step, path: Path) -> int | None:
    """From where on the planner has the card do it; None: never."""
    where = "emulated:0:2GB" if step.emulated else _CARD
    override = rf"blk\.[0-{_LAYERS - 1}]\.ffn_.*=CPU"
    command = ["-m", "ggrun", "plan", str(path), "--devices", f"{where},cpu", "-ot", override, "-c", "512"]
    text = " ".join(line.strip() for line in step.lines([sys.executable, *command]))
    found = re.search(r"where a batch has (\d+)", text)
    return int(found[1]) if found else None
