"""The devices of this machine as a planner sees them; speeds are measured once and kept."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from fractions import Fraction

from ggrun.devices.cuda.found import Cards, usable_cards
from ggrun.devices.host_memory import host_memory
from ggrun.devices.kept import tell
from ggrun.devices.names import DeviceName, refuse_twins
from ggrun.devices.speeds import cpu_key, forget, keep, kept, measured_cpu
from ggrun.errors import UsageError
from ggrun.plan import Plan, host_of
from ggrun.plan.facts import ModelFacts
from ggrun.plan.hardware import (
    DeviceInfo,
    Speeds,
    card_name,
    cpu_info,
    parse_devices,
    plain_name,
)
from ggrun.plan.options import PlanOptions
from ggrun.plan.planned import Planned
from ggrun.plan.planner import make_plan
from ggrun.plan.report import require_fit, with_plan

_BANDWIDTH = 20e9  # bytes a second, where none was measured: only ratios of it matter to a plan

_PLACING = {
    "split_mode": "-sm", "n_gpu_layers": "-ngl", "tensor_split": "-ts", "main_gpu": "-mg", "order": "-dev",
    "overrides": "-ot", "cpu_moe": "-cmoe", "n_cpu_moe": "-ncmoe", "n_cpu_ffn": "-ncffn",
    "kv_offload": "-nkvo", "row_groups": "--row-groups",
}  # fmt: skip
_BUSY = 1.1
"""So much faster is memory than when others were using it."""

_CARD = re.compile(r"cuda:\d{1,3}")
_PRETENDS = re.compile(r"cpu:\d|emulated")
"""Names of what pretends to be a card, and has its memory from this machine."""

_BESIDE_A_PLAN = (
    "n_ctx", "n_ubatch", "sequences", "cache_type_k", "cache_type_v", "fit", "fit_margin", "fit_ctx",
    "op_offload",
)  # fmt: skip


def local_devices(text: str | None = None, threads: int | None = None, p2p: str = "auto") -> list[DeviceInfo]:
    """The devices of a text such as "cuda:0,cpu" or "cpu:0:2GB,cpu:1:2GB"; None: all cards, and the CPU.

    With the speeds that were measured before, and the links between cards that `p2p` chooses.
    """
    return _found(everything() if text is None else text, threads, p2p)


def everything() -> str:
    """The names of all cards that can be used here, and the CPU."""
    return ",".join([*(f"cuda:{i}" for i in usable_cards()), "cpu"])


def named_devices(names: Iterable[str], threads: int | None = None, p2p: str = "auto") -> list[DeviceInfo]:
    """The devices of a plan, called as it calls them; UsageError for one that there is not."""
    names = list(names)
    refuse_twins([DeviceName.parse(name) for name in names])
    found = _found(",".join(names), threads, p2p) if names else []
    return [replace(device, name=name) for device, name in zip(found, names, strict=True)]


def _found(text: str, threads: int | None, p2p: str) -> list[DeviceInfo]:
    """The devices of a text; the cards among them that are here with what is known of their links."""
    here: set[int] = set()

    def card_here(index: int) -> DeviceInfo:
        from ggrun.devices.cuda.local import local_card

        here.add(index)
        return local_card(index)

    devices = parse_devices(text, local_cpu(threads), card_here)
    if not here:
        return devices
    from ggrun.devices.cuda.local import peers_of

    peers = peers_of(here, p2p)
    return [replace(device, peers=peers.get(card_name(device.name), ())) for device in devices]


def planned_here(
    facts: ModelFacts,
    devices: str | None,
    threads: int | None,
    options: PlanOptions,
    plan: Plan | None = None,
    p2p: str = "auto",
    remote: Sequence[DeviceInfo] = (),
) -> Planned:
    """The plan for the devices of this machine, or the user's own, checked: DoesNotFit, or UsageError.

    remote    devices of other machines, which come before this one's cards: so these make the logits
    """
    planned = _planned_here(facts, devices, threads, options, plan, p2p, remote)
    if planned.offloads and not here_is_known(threads):
        local_cpu(threads, measure=True)  # when the CPU leaves work to cards is not to be guessed
        planned = _planned_here(facts, devices, threads, options, plan, p2p, remote)
    if options.fit:
        require_fit(planned)
    return planned


def _planned_here(
    facts: ModelFacts,
    devices: str | None,
    threads: int | None,
    options: PlanOptions,
    plan: Plan | None,
    p2p: str,
    remote: Sequence[DeviceInfo],
) -> Planned:
    if plan is None:
        here = local_devices(devices, threads, p2p)
        refuse_unusable(options, here)
        return make_plan(facts, shared_out([*remote, *here], options), options)
    own = devices_of(plan, threads, p2p) if devices is None else local_devices(devices, threads, p2p)
    return planned_as_written(facts, shared_out([*remote, *own], options), options, plan)


def refuse_unusable(options: PlanOptions, here: Iterable[DeviceInfo]) -> None:
    """GgrunError for a card of this machine that flags name and that is not `here`: why it cannot be used."""
    names = {card_name(device.name) for device in here}
    for text in (*(options.order or ()), *(device for _, device in options.overrides)):
        name = card_name(plain_name(text))
        if _CARD.fullmatch(name) and name not in names:
            Cards.found().card(int(name.removeprefix("cuda:")))


def shared_out(devices: Sequence[DeviceInfo], options: PlanOptions) -> list[DeviceInfo]:
    """The same devices, of which those that live in this machine's memory may take no more than there is.

    What pretends to be a card has its limit, or less in proportion; the CPU has the rest. Devices of other
    machines stay as they are.
    """
    margins = options.margins(len(devices))
    hosts = [margin for device, margin in zip(devices, margins, strict=True) if device.host]
    own = max(hosts or margins, default=0)
    there, cards = max(0, host_memory().available - own), [d for d in devices if pretends([d])]
    for_cards = there - there // 8 if any(d.host for d in devices) else there
    wanted = sum(d.free for d in cards)
    part = Fraction(min(wanted, for_cards), max(1, wanted))
    rest = there - int(wanted * part)

    def cut(device: DeviceInfo) -> DeviceInfo:
        if device.host:
            return replace(device, free=min(device.free, rest + own))
        return replace(device, free=int(device.free * part)) if device in cards else device

    return [cut(device) for device in devices] if options.fit else list(devices)


def devices_of(plan: Plan, threads: int | None = None, p2p: str = "auto") -> list[DeviceInfo]:
    """The devices of a plan that a user wrote, of this machine."""
    every = (member.device for stage in plan.stages for member in stage.members)
    names = dict.fromkeys(name for name in every if not host_of(name))
    if plan.kv_on_host:
        names["cpu"] = None
    return named_devices(names, threads, p2p)


def pretends(devices: Iterable[DeviceInfo]) -> bool:
    """Whether any of them pretends to be a card: that can only be on this machine."""
    return any(_PRETENDS.match(device.name) for device in devices)


def planned_as_written(
    facts: ModelFacts, devices: list[DeviceInfo], options: PlanOptions, plan: Plan
) -> Planned:
    """A plan that a user wrote; UsageError for flags that say what it says."""
    plan.check(facts.config)
    sizes_only = PlanOptions(**{name: getattr(options, name) for name in _BESIDE_A_PLAN})
    if options != sizes_only:
        others = [f.name for f in fields(options) if getattr(options, f.name) != getattr(sizes_only, f.name)]
        said = ", ".join(_PLACING[name] for name in others)
        raise UsageError(f"a plan says where everything runs: it goes without {said}")
    return with_plan(make_plan(facts, devices, sizes_only), plan)


def local_cpu(threads: int | None = None, measure: bool = False) -> DeviceInfo:
    """This machine's CPU and memory. measure: find out its speeds, if that was not done before."""
    memory, key = host_memory(), cpu_key(threads)
    known = kept(key)
    if known is None and measure:
        tell("measuring how fast this machine's CPU is: once, some seconds")
        known = measured_cpu(threads)
        keep(key, known)
    return cpu_info("cpu", memory.total, memory.available, known or Speeds(_BANDWIDTH))


def here_is_known(threads: int | None) -> bool:
    """Whether the speeds of this machine were measured before."""
    return kept(cpu_key(threads)) is not None


def remember(threads: int | None, bandwidth: float) -> None:
    """Keep what was measured, if it is more than what is kept: less was of a moment when others ran.

    Where it is much more, the other speeds are of such a moment too: they are measured again.
    """
    key, known = cpu_key(threads), kept(cpu_key(threads))
    if known is not None and known.bandwidth * _BUSY < bandwidth:
        forget(key)
    elif known is not None and known.bandwidth < bandwidth:
        keep(key, replace(known, bandwidth=bandwidth))
