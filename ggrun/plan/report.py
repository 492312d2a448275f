"""What is said of a plan: the flags that give it, what holds it back, what would make it fit."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from ggrun.errors import GgrunError, UsageError
from ggrun.plan import Plan, whole
from ggrun.plan.facts import PAGE
from ggrun.plan.options import FIT_MARGIN, PlanOptions
from ggrun.plan.planned import Planned, Settled
from ggrun.plan.planner import make_plan
from ggrun.plan.rows import uncut
from ggrun.plan.usage import item_use, working

_MIB = 1 << 20


class DoesNotFit(GgrunError):
    """There is no room for the model; the text names the flag that would make some."""


def flags(planned: Planned) -> list[str]:
    """The flags that give this very plan again, on the same devices."""
    o, layers = planned.options, planned.facts.config.layers
    if planned.own:
        return ["--plan", "FILE", "-c", str(planned.sizes.n_ctx), *_as_given(o)]
    owners = _owners(planned.plan, 2 * layers)
    free = [i for i, names in enumerate(owners) if i not in planned.choice.given and names != ("cpu",)]
    start = planned.choice.first_on_cards(o, layers) if planned.choice.host else 0
    if start is None:
        start = planned.settled.first
    if start is None:
        start = 2 * (free[0] // 2) if free else 2 * layers + 1
    found = ["-c", str(planned.sizes.n_ctx), *_as_given(o)]
    if planned.choice.cards and planned.choice.host:
        found += ["-ngl", str(layers + 1 - (start + 1) // 2)]
    if planned.choice.cards:
        found += ["-ncffn", str(planned.settled.cpu_ffn)] if 2 * planned.settled.cpu_ffn > start else []
        found += _split(planned, owners, free, start)
    return found


def _as_given(o: PlanOptions) -> list[str]:
    """What the user said, for as far as the planner has nothing to add to it."""
    found: list[str] = []
    margin = o.fit_margin if isinstance(o.fit_margin, int) else ",".join(map(str, o.fit_margin))
    for flag, value, default in (
        ("-ub", o.n_ubatch, 512), ("-ctk", o.cache_type_k, "f16"), ("-ctv", o.cache_type_v, "f16"),
        ("-sm", o.split_mode, "layer"), ("-mg", o.main_gpu, 0), ("-fitt", margin, FIT_MARGIN),
        ("--row-groups", ",".join(map(str, o.row_groups or ())), ""),
        ("-ncmoe", o.n_cpu_moe, None), ("-ncffn", o.n_cpu_ffn, None),
    ):  # fmt: skip
        found += [flag, str(value)] if value != default else []
    found += ["-nkvo"] if not o.kv_offload else []
    found += ["--no-op-offload"] if not o.op_offload else []
    found += ["-fit", "off"] if not o.fit else []
    found += ["-cmoe"] if o.cpu_moe else []
    found += ["-dev", ",".join(o.order)] if o.order is not None else []
    return found + [part for pattern, device in o.overrides for part in ("-ot", f"{pattern}={device}")]


def _owners(plan: Plan, halves: int) -> list[tuple[str, ...]]:
    """The names of the devices of each half layer and of the output."""
    owners: list[tuple[str, ...]] = [()] * (halves + 1)
    for stage in plan.stages:
        for item in range(*stage.halves):
            owners[item] = tuple(member.device for member in stage.members)
    owners[halves] = tuple(member.device for member in plan.stages[-1].members)
    return owners


def _split(planned: Planned, owners: list[tuple[str, ...]], free: list[int], start: int) -> list[str]:
    """-ts: the ratios of rows, or how many layers from `start` each card has, the output counting as one."""
    o, cards = planned.options, [card.name for card in planned.choice.cards]
    ratios = o.tensor_split or planned.settled.ratios
    if len(cards) < 2 or (o.split_mode == "none" and not ratios) or not (free or ratios):
        return []
    if ratios:
        return ["-ts", ",".join(f"{ratio:.17g}" for ratio in ratios)]
    counts, begin = [], start
    for position in range(len(cards)):
        end = next((i for i in free if cards.index(owners[i][0]) > position), len(owners) + 1)
        counts.append(max(0, end - begin) / 2)
        begin = max(begin, end)
    return ["-ts", ",".join(f"{count:g}" for count in counts)]


def bottleneck(planned: Planned) -> str:
    """Which device a token spends the most time on, and at what."""
    busy, halves = planned.speed.busy, len(planned.facts.parts)
    name = max(busy, key=lambda device: busy[device])
    items = sum(name in names for names in _owners(planned.plan, halves))
    half_layer = next(device.half_layer for device in planned.devices if device.name == name)
    beside = 1e12 * half_layer * items
    what = (
        "reading weights and KV cache" if beside < busy[name] / 2 else "what layers do beside their matrices"
    )
    return f"{name}, {busy[name] / planned.speed.token:.0%} of a token's time: mostly {what}"


def notes(planned: Planned) -> Iterator[str]:
    """What a user should know: what cards do for the CPU, devices left out, cuts that cannot be made."""
    yield from _offloads(planned)
    if planned.own:
        return
    for name, flag in planned.choice.idle.items():
        yield f"{name} is left out by {flag}"
    yield from left_out(planned)
    for pattern in planned.choice.shadowed:
        yield f"-ot {pattern} changes nothing: those before it match all that it does"
    if any(len(stage.members) > 1 for stage in planned.plan.stages) and (what := uncut(planned.facts)):
        yield f"{what} cannot be cut: one device has all of it, the others share the rest"


def left_out(planned: Planned) -> Iterator[str]:
    """Cards that the plan may use, and does not, and why."""
    for position, card in enumerate(planned.choice.cards):
        if card.name not in planned.uses:
            yield f"{card.name} is left out{_why_left_out(planned, position)}"


def _offloads(planned: Planned) -> Iterator[str]:
    """How many feed-forwards of the CPU cards compute, and from how many tokens on."""
    leasts: dict[str, list[int]] = {}
    for offload in planned.offloads.values():
        leasts.setdefault(offload.card, []).append(offload.least)
    for card, every in leasts.items():
        least = " to ".join(map(str, sorted({min(every), max(every)})))
        many = f"where a batch has {least} tokens or more"
        yield f"{card} computes {len(every)} of the CPU's feed-forwards {many}"


def _why_left_out(planned: Planned, position: int) -> str:
    """Why the planner gave nothing to a card that it could use."""
    ratios, choice = planned.options.tensor_split, planned.choice
    if ratios and not (planned.options.rows and ratios[position]):  # of rows it may have had a share
        return " by -ts"
    if len([item for item in choice.given if item >= 0]) == planned.facts.items:
        return ": flags give all layers to other devices"
    if choice.first_on_cards(planned.options, planned.facts.config.layers) == planned.facts.items:
        return " by -ngl 0"
    card = choice.cards[position].name
    member, table = whole(planned.facts.config, card), range(planned.facts.items)
    least = min(item_use(planned.facts, item, member, planned.sizes).total for item in table)
    if least + working(planned.facts, member, planned.sizes, len(planned.devices) - 1) > planned.limits[card]:
        return ": it has no room for any layer"
    return ": with it, tokens would take longer"


def require_fit(planned: Planned) -> None:
    """DoesNotFit, when it does not."""
    if not planned.fits:
        raise DoesNotFit(shortage(planned))


def shortage(planned: Planned) -> str:
    """What is missing where, and the flag that helps, in one line."""
    if not planned.over:
        found = " ".join(flags(planned))
        return f"{planned.facts.name}: does not fit in any way that is tried; it does with {found}"
    name, missing = max(planned.over.items(), key=lambda pair: pair[1])
    use, limit = planned.uses[name], planned.limits[name]
    parts = f"weights {size(use.weights)}, KV cache {size(use.kv)}, working memory {size(use.working)}"
    return (
        f"{planned.facts.name}: does not fit: {name} needs {size(use.total)} ({parts}) and may take "
        f"{size(limit)}, {size(missing)} less: {remedy(planned)}"
    )


def remedy(planned: Planned) -> str:
    """The flags that would make it fit, tried out: one of them, or else as many as it takes."""
    changes = list(_remedies(planned))
    for words, fields in changes:
        if (other := _again(planned, fields)) and other.fits:
            return f"give {words(other)}"
    if n := _context_that_fits(planned):
        return f"give a smaller context with -c {n}"
    together: dict[str, Any] = {}
    for i, (_, fields) in enumerate(changes):
        together |= fields
        if (other := _again(planned, together)) and other.fits:
            said = dict.fromkeys(words(other) for words, _ in changes[: i + 1])
            return f"give {' and '.join(said)}"
    if planned.own:
        return "leave the choice to ggrun, without --plan, or write another"
    if planned.choice.host is None:
        return "take a smaller quantization, or leave layers to a CPU: --devices ...,cpu:64GB@50GB/s"
    return "take a smaller quantization, or more devices"


def _again(planned: Planned, fields: dict[str, Any]) -> Planned | None:
    """The same with other options, if these go together; a plan that the user wrote stays as it is."""
    try:
        other = make_plan(planned.facts, planned.devices, replace(planned.options, **fields))
    except UsageError:
        return None
    return with_plan(other, planned.plan) if planned.own else other


Change = tuple[Callable[[Planned], str], dict[str, Any]]
"""What to say of what helped, and the options that are other ones: no more than what is said."""


def _remedies(planned: Planned) -> Iterator[Change]:
    """Each changes what it says, and leaves all else as the user has it."""
    o = planned.options
    if o.n_gpu_layers != "auto":
        yield _say("-ngl auto, which leaves to the CPU what does not fit"), {"n_gpu_layers": "auto"}
    if o.row_groups is not None:
        yield _say("no --row-groups, or other ones"), {"row_groups": None}
    if o.tensor_split is not None:
        yield _say("no -ts, or another one"), {"tensor_split": None}
    if o.split_mode == "none":
        yield _say("-sm layer, which uses all devices"), {"split_mode": "layer"}
    if o.n_ctx > o.fit_ctx:
        yield lambda other: f"-c {other.sizes.n_ctx}", {"n_ctx": 0}
    if {o.cache_type_k, o.cache_type_v} != {"q8_0"}:
        yield _say("-ctk q8_0 -ctv q8_0"), {"cache_type_k": "q8_0", "cache_type_v": "q8_0"}
    if o.n_ubatch > 64:
        yield _say("-ub 64"), {"n_ubatch": 64}
    if not o.kv_offload:
        yield _say("no -nkvo"), {"kv_offload": True}
    if o.overrides:
        yield _say("no -ot, or another one"), {"overrides": ()}
    if o.cpu_moe or o.n_cpu_moe or o.n_cpu_ffn:
        yield _say("no -cmoe, -ncmoe or -ncffn"), {"cpu_moe": False, "n_cpu_moe": None, "n_cpu_ffn": None}
    if o.order is not None:
        yield _say("no -dev, which uses all devices"), {"order": None}
    if any(o.margins(len(planned.devices))):
        yield _say("-fitt 0, which leaves nothing for others"), {"fit_margin": 0}


def _say(words: str) -> Callable[[Planned], str]:
    return lambda other: words


def _context_that_fits(planned: Planned) -> int:
    low, high = 0, max(planned.sizes.n_ctx // PAGE, 1)
    while high - low > 1:
        middle = (low + high) // 2
        other = _again(planned, {"n_ctx": PAGE * middle})
        low, high = (middle, high) if other and other.fits else (low, middle)
    return PAGE * low


def with_plan(planned: Planned, plan: Plan) -> Planned:
    """The same with a plan that a user has written; UsageError when it is not for this model or devices.

    Where he left the context open, it is what there is room for, up to the model's.
    """
    plan.check(planned.facts.config)
    there = [device.name for device in planned.devices]
    named = {member.device: None for stage in plan.stages for member in stage.members}
    if unknown := [name for name in named if name not in there]:
        raise UsageError(
            f"the plan uses {unknown[0]!r:.40}, which is not there: there are {', '.join(there)}"
        )
    other = replace(planned, plan=plan, settled=Settled(), own=True)
    if planned.options.n_ctx:
        return other
    o, largest = planned.options, planned.facts.config.context
    n_ctx = min(largest, max(o.fit_ctx, other.context_as_laid_out)) if o.fit else largest
    return replace(other, sizes=replace(planned.sizes, n_ctx=n_ctx))


def size(nbytes: int) -> str:
    """Bytes in words."""
    if nbytes >= 1 << 30:
        return f"{nbytes / 2**30:.2f} GiB"
    return f"{nbytes / _MIB:.0f} MiB" if nbytes >= 10 * _MIB or not nbytes else f"{nbytes / 1024:.0f} KiB"
