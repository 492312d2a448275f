"""Which devices a plan may use, and which half layers the user has given a place."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, islice

from ggrun.errors import UsageError
from ggrun.plan import host_of
from ggrun.plan.facts import EMBEDDING, ModelFacts
from ggrun.plan.hardware import DeviceInfo, plain_name, short_name
from ggrun.plan.options import PlanOptions


@dataclass(frozen=True)
class Choice:
    """The devices, and what the flags say of them. Items are half layers, and 2 * layers the output."""

    cards: tuple[DeviceInfo, ...]  # in the order that activations pass them
    groups: tuple[tuple[DeviceInfo, ...], ...]  # the same: those that share each matrix, in mode row
    host: DeviceInfo | None
    given: dict[int, DeviceInfo]  # items (and EMBEDDING) that flags put somewhere
    idle: dict[str, str]  # devices that flags leave out, and which flag it is
    shadowed: tuple[str, ...]  # regexes of -ot that match nothing which those before them do not

    @classmethod
    def of(cls, facts: ModelFacts, devices: Sequence[DeviceInfo], options: PlanOptions) -> "Choice":
        """UsageError where flags, devices and model do not go together."""
        by_name = {device.name: device for device in devices}
        host = next((device for device in devices if device.host), None)
        cards, idle = _cards(by_name, options)
        if not cards and host is None:
            raise UsageError("no device is left: give one with -dev, or cpu among --devices")
        overridden, shadowed = _overridden(facts, options, by_name)
        given = {item: by_name[name] for item, name in overridden.items()}
        for item in _on_cpu(facts, options):
            given.setdefault(item, _needed(host, "-cmoe, -ncmoe and -ncffn"))
        if not options.kv_offload:
            _needed(host, "-nkvo")
            if away := [card.name for card in cards if host_of(card.name)]:
                raise UsageError(f"-nkvo keeps the KV cache on this machine, and {away[0]} is on another")
        if cards and isinstance(options.n_gpu_layers, int) and options.n_gpu_layers <= facts.config.layers:
            _needed(host, "-ngl")
        return cls(cards, _groups(cards, options), host, given, idle, shadowed)

    def first_on_cards(self, options: PlanOptions, layers: int) -> int | None:
        """The first item that goes to cards as -ngl says, or None when it does not."""
        if not self.cards or options.n_gpu_layers == "auto":
            return None
        n = layers + 1 if options.n_gpu_layers == "all" else min(int(options.n_gpu_layers), layers + 1)
        return 2 * (layers + 1 - n) if n else 2 * layers + 1


def _cards(
    by_name: dict[str, DeviceInfo], options: PlanOptions
) -> tuple[tuple[DeviceInfo, ...], dict[str, str]]:
    every = [device for device in by_name.values() if not device.host]
    cards = every
    if options.order is not None:
        names = [] if list(options.order) == ["none"] else [_known(n, by_name) for n in options.order]
        if twice := [name for name in names if names.count(name) > 1]:
            raise UsageError(f"-dev: {twice[0]} is there twice")
        cards = [by_name[name] for name in names if not by_name[name].host]
    idle = {device.name: "-dev" for device in every if device not in cards}
    if options.tensor_split is not None and len(options.tensor_split) != len(cards):
        raise UsageError(
            f"-ts gives {len(options.tensor_split)} numbers for {len(cards)} cards"
            + (f" ({', '.join(device.name for device in cards)})" if cards else "")
        )
    if options.main_gpu >= max(1, len(cards)):
        there = f"there are {len(cards)} cards, counted from 0" if cards else "there are no cards"
        raise UsageError(f"-mg {options.main_gpu}: {there}")
    if options.split_mode == "none" and cards:
        idle |= {device.name: "-sm none" for device in cards}
        cards = [cards[options.main_gpu]]
        del idle[cards[0].name]
    return tuple(cards), idle


def _groups(cards: Sequence[DeviceInfo], options: PlanOptions) -> tuple[tuple[DeviceInfo, ...], ...]:
    """As the user said; or, in mode row, by machines; else each card is one."""
    if not options.rows:
        return tuple((card,) for card in cards)
    if options.row_groups is None:
        found = tuple(tuple(group) for _, group in groupby(cards, lambda card: host_of(card.name)))
        if len(found) > 1 and len(found) == len(cards):
            raise UsageError(
                f"-sm {options.split_mode} shares each matrix, which needs one machine, and "
                f"{' and '.join(card.name for card in cards)} are on several: take -sm layer"
            )
        return found
    if sum(options.row_groups) != len(cards):
        raise UsageError(
            f"--row-groups has room for {sum(options.row_groups)} cards, and there are {len(cards)}"
        )
    rest = iter(cards)
    found = tuple(tuple(islice(rest, size)) for size in options.row_groups)
    for group in found:
        if len(hosts := {host_of(card.name): card.name for card in group}) > 1:
            raise UsageError(f"--row-groups: {' and '.join(hosts.values())} are on several machines")
    return found


def _known(name: str, by_name: dict[str, DeviceInfo]) -> str:
    """A device by its name, with or without its limit, or by llama.cpp's."""
    plain = plain_name(name)
    for known in by_name:
        if plain in (known.lower(), short_name(known)):
            return known
    raise UsageError(f"unknown device {name.strip()!r:.40}: there are {', '.join(by_name)}")


def _needed(host: DeviceInfo | None, flag: str) -> DeviceInfo:
    if host is None:
        raise UsageError(f"{flag} needs the CPU, which is not among the devices: add cpu to --devices")
    return host


def _overridden(
    facts: ModelFacts, options: PlanOptions, by_name: dict[str, DeviceInfo]
) -> tuple[dict[int, str], tuple[str, ...]]:
    """The items with a tensor that a regex of -ot matches, and the device of the first that does.

    And the regexes that come too late for all of theirs.
    """
    found: dict[int, str] = {}
    shadowed: list[str] = []
    for pattern, name in options.overrides:
        device = _known(name, by_name)
        try:
            regex = re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise UsageError(f"-ot {pattern!r:.60}: not a regular expression: {error}") from None
        items = [
            item
            for item in range(EMBEDDING, facts.items)
            if any(regex.search(name) for name in facts.part(item).names)
        ]
        if not items:
            raise UsageError(f"-ot {pattern!r:.60}: no tensor of the model has such a name")
        if all(item in found for item in items):
            shadowed.append(pattern)
        for item in items:
            found.setdefault(item, device)
    return found, tuple(shadowed)


def _on_cpu(facts: ModelFacts, options: PlanOptions) -> set[int]:
    """The feed-forward halves that -cmoe, -ncmoe and -ncffn leave to the CPU."""
    layers = facts.config.layers
    with_experts = layers if options.cpu_moe else min(options.n_cpu_moe or 0, layers)
    if with_experts and not facts.config.experts:
        raise UsageError("-cmoe and -ncmoe: the model has no experts; -ncffn leaves feed-forwards to the CPU")
    return {2 * i + 1 for i in range(max(with_experts, min(options.n_cpu_ffn or 0, layers)))}
