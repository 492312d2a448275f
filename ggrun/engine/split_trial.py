"""`-sm auto`: which of two ways to split a model over cards is faster here, measured once and kept."""

import json
import platform
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from hashlib import sha256

import numpy as np

from ggrun import __version__
from ggrun.devices.base import Device
from ggrun.devices.kept import Kept, tell
from ggrun.engine.engine import Engine
from ggrun.engine.generate import usual_top
from ggrun.engine.loaded import SUMS, Sums
from ggrun.errors import GgrunError, Interrupted
from ggrun.gguf import GGUF, FirstLayers
from ggrun.plan.facts import ModelFacts
from ggrun.plan.options import PlanOptions
from ggrun.plan.planned import Planned
from ggrun.plan.report import DoesNotFit

Make = Callable[[ModelFacts, PlanOptions], Planned]
Opened = Callable[[Iterable[str]], dict[str, Device]]

MODES = ("layer", "row")
_LAYERS = 4
_PROMPT, _TOKENS = 256, 8
_TRIALS = 3


def with_mode(
    model: GGUF, options: PlanOptions, make: Make, opened: Opened, sums: Sums = SUMS
) -> PlanOptions:
    """The same options, with a split mode in place of auto.

    make      plans for the devices that there are: DoesNotFit where there is no room
    opened    opens the devices of these names
    sums      how they sum in mode row

    A mode that does not fit, or that these devices cannot run, is out. Of both, the one with which the first
    layers of the model take less time: to read a token of a prompt and to write one, as the planner counts.
    Where that cannot be tried, the one that is predicted to be faster.
    """
    if options.split_mode != "auto":
        return options
    facts = ModelFacts.from_outline(model)
    plans: dict[str, Planned] = {}
    for mode in MODES:
        with suppress(DoesNotFit):
            plans[mode] = make(facts, options.in_mode(mode))
    if len(plans) < len(MODES) or not _differ(plans):
        return options.in_mode(next(iter(plans), MODES[0]))
    key = _key(model, plans, sums)
    if (known := _KEPT.get(key)) is not None:
        return options.in_mode(known)
    tell("trying once which is faster here for this model, -sm layer or -sm row: some seconds")
    seconds: dict[str, float] = {}
    for mode, planned in plans.items():
        try:
            seconds[mode] = _seconds(model, planned, make, opened, sums)
        except DoesNotFit:  # four layers on cards alone may need what the whole model does not
            return options.in_mode(make(facts, options).options.split_mode)
        except Interrupted:
            raise
        except GgrunError as error:
            tell(f"-sm {mode} is out: {error}")
    best = min(seconds or MODES, key=lambda mode: seconds.get(mode, 0.0))
    tell(f"-sm {best} it is")
    _KEPT.put(key, best, json.dumps({"mode": best, "seconds": seconds}), settled=len(seconds) == len(MODES))
    return options.in_mode(best)


def _read(text: str) -> str:
    """One of kept.NONSENSE for what is no mode."""
    if (mode := json.loads(text)["mode"]) not in MODES:
        raise ValueError("no mode")
    return str(mode)


_KEPT = Kept("split", _read)


def _differ(plans: dict[str, Planned]) -> bool:
    """Whether any stage of the row plan has several members: with one card there is nothing to choose."""
    return any(len(stage.members) > 1 for stage in plans["row"].plan.stages)


def _key(model: GGUF, plans: dict[str, Planned], sums: Sums) -> str:
    """What a result is kept under: the model's shape and formats, the devices, how they sum, our version."""
    tensors = sorted((t.name, t.shape, t.format.name) for t in model.tensors.values())
    hardware = [(d.name, d.label, d.memory) for d in plans["row"].devices]
    where = [planned.plan.to_json() for planned in plans.values()]
    told = json.dumps([tensors, hardware, where, plans["row"].sizes.keys, sums, __version__])
    return f"{platform.node()}-{sha256(told.encode()).hexdigest()[:16]}"


def _seconds(model: GGUF, planned: Planned, make: Make, opened: Opened, sums: Sums) -> float:
    """For a token read and a token written by the first layers, shared as the plan shares all of them."""
    short = FirstLayers(model, _LAYERS)
    o = PlanOptions(
        planned.options.split_mode, "all", _ratios(planned),
        row_groups=planned.options.row_groups, order=planned.options.order, n_ctx=_PROMPT + 64,
        n_ubatch=planned.options.n_ubatch, cache_type_k=planned.sizes.keys,
        cache_type_v=planned.sizes.values, fit_margin=planned.options.fit_margin,
    )  # fmt: skip
    found = make(ModelFacts.from_outline(short), o)
    devices = opened({m.device for stage in found.plan.stages for m in stage.members})
    try:
        engine = Engine(short, found.facts.config, found.plan, devices, found.sizes, sums=sums)
        return min(_once(engine) for _ in range(_TRIALS + 1))  # the first compiles
    finally:
        for device in devices.values():
            device.close()


def _once(engine: Engine) -> float:
    prompt, top = np.arange(_PROMPT) * 7919 % engine.config.vocab, usual_top(engine.config.vocab)
    engine.cache.truncate(0, 0)
    begin = time.perf_counter()
    engine.evaluate(prompt.tolist(), top=top)
    read = time.perf_counter()
    for token in prompt[:_TOKENS].tolist():
        engine.evaluate([token], top=top)
    return (read - begin) / _PROMPT + (time.perf_counter() - read) / _TOKENS


def _ratios(planned: Planned) -> tuple[float, ...] | None:
    """What each card has of the half layers, or of their rows; None where cards have nothing."""
    work = {card.name: 0.0 for card in planned.choice.cards}
    for stage in planned.plan.stages:
        whole = sum(member.ff[1] - member.ff[0] for member in stage.members)
        for member in stage.members:
            if member.device in work:
                part = (member.ff[1] - member.ff[0]) / whole if whole else 0.0
                work[member.device] += part * (stage.halves[1] - stage.halves[0])
    return tuple(work.values()) if any(work.values()) else None
