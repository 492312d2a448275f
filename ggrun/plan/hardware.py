"""Devices as a planner sees them, and how users write those that are not here."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from ggrun.errors import UsageError
from ggrun.plan.cards import CARDS, Card, key

EFFICIENCY, HALF_LAYER = 0.87, 42e-6
"""What a product of a matrix and a vector reaches of the memory's bandwidth, and the seconds that a half
layer takes beside its matrices: launches or barriers, norms, attention.

The straight line through llama.cpp's published tg512 on one RTX 3090 and one 4090 with 8B and on two of them
with 70B (Q4_K_M: 115.4, 130.6, 16.57, 19.22 tokens/s; github.com/XiongjieDai/GPU-Benchmarks-on-LLM-Inference,
May 2024), which meets them within 6 %; and that through Q4_K_M and Q8_0 of a 1.1B on two cores with AVX-512
is the same."""
CARD_EFFICIENCY, CARD_HALF_LAYER = 0.95, 15e-6
"""The same of a card whose bandwidth was measured, by a copy, with kernels of our own: 8B Q4_K_M, 8B Q8_0 and
70B Q4_K_M on an H100 and on an H200 (benchmarks/2026-11-26-h100.md, -h200.md) are within 16 %."""
CARD_PRODUCTS = 0.18
"""What quantized products reach of a card's int8 arithmetic: llama.cpp's prompts of 512 tokens on RTX 3090
and 4090, 8B and 70B (github.com/XiongjieDai/GPU-Benchmarks-on-LLM-Inference, May 2024; 0.17 to 0.21)."""
CPU_OPERATIONS = 12.0
"""Operations of quantized products for each byte a second of its memory, of a CPU that was not measured."""
CPU_FLOATS = 0.4
"""The part of that rate that products of float weights reach: AVX-512, two cores."""
_LANE = {3: 0.8e9, 4: 1.6e9, 5: 3.2e9}  # bytes a second that copies reach on a PCIe lane
_DEFAULT_LINK = 12e9  # of an unknown card: PCIe 3.0 x16

MOST_DEVICES = 32
"""More take minutes to plan for."""
_TOO_MANY = f"no more than {MOST_DEVICES} devices can be planned for"

_ITEM = re.compile(
    r"(?:(\d{1,9})\s*[x×]\s*)?"  # 2x
    r"((?:cpu|emulated|cuda)(?::\d{1,3}(?:\.\d{1,3})?)?|[^:@,]+?)"  # cpu, cpu:0, cuda:0.1, rtx3090
    r"(?:\s*:\s*([0-9.]+)\s*([KMGT]?)i?B)?"  # :64GB
    r"(?:\s*@\s*([0-9.]+)\s*([MGT])B/s)?",  # @50GB/s
    re.IGNORECASE | re.ASCII,
)
_CPU, _CUDA = re.compile(r"(cpu|emulated)(?::(\d+))?"), re.compile(r"cuda:(\d+)(?:\.(\d+))?")
_BINARY = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_DECIMAL = {"M": 1e6, "G": 1e9, "T": 1e12}


@dataclass(frozen=True)
class Link:
    """How copies go from one card to another. Speeds are 0 where they were not measured."""

    direct: bool  # and not through the host's memory
    bandwidth: float = 0.0  # bytes a second
    latency: float = 0.0  # seconds that a copy takes, however short it is
    reason: str = ""  # why they do not go direct


@dataclass(frozen=True)
class DeviceInfo:
    """A device's memory in bytes and its speeds."""

    name: str  # as plans say it
    memory: int
    free: int
    bandwidth: float  # bytes a second that it reads from its own memory
    operations: float  # of quantized matrix products a second: a multiplication and an addition are two
    link: float  # bytes a second between it and the host
    label: str = ""
    shared: bool = True  # others take from its memory too: a margin is left
    float_operations: float = 0.0  # of products with F32, F16 and BF16 weights; 0: as many
    unpacked: float = 0.0  # weights a second of formats that it unpacks to floats first; 0: any number
    network: float = 0.0  # bytes a second to the machine that it is in, where that is another one
    latency: float = 0.0  # seconds that a message takes there
    peers: tuple[tuple[str, Link], ...] = ()  # links to other cards, by card_name
    efficiency: float = EFFICIENCY
    half_layer: float = HALF_LAYER

    def link_to(self, other: "DeviceInfo") -> Link | None:
        """How copies go to another card, if that was measured."""
        name = card_name(other.name)
        return next((link for peer, link in self.peers if peer == name and link.bandwidth), None)

    @property
    def host(self) -> bool:
        """Whether it is this machine's CPU and memory, and not a card or what pretends to be one."""
        return self.name == "cpu"

    def products(self, weights: int, floats: int, slow: int, tokens: int) -> float:
        """Seconds to multiply so many weights with `tokens` numbers each.

        floats    of them are no quantized ones; slow: of them are unpacked to floats first
        """
        quantized = (weights - floats) / self.operations
        multiplied = 2 * tokens * (quantized + floats / (self.float_operations or self.operations))
        return multiplied + (slow / self.unpacked if self.unpacked else 0.0)

    def usable(self, margin: int) -> int:
        """The bytes that a plan may take."""
        return max(0, self.free - margin) if self.shared else self.free


@dataclass(frozen=True)
class Speeds:
    """What is measured of a device: see DeviceInfo. What is 0 is not known."""

    bandwidth: float
    operations: float = 0.0
    float_operations: float = 0.0
    link: float = 0.0
    unpacked: float = 0.0


def card_info(name: str, label: str, memory: int, free: int, speeds: Speeds) -> DeviceInfo:
    """A card that is here."""
    floats = speeds.float_operations
    return DeviceInfo(
        name, memory, free, speeds.bandwidth, speeds.operations, speeds.link, label, float_operations=floats,
        efficiency=CARD_EFFICIENCY, half_layer=CARD_HALF_LAYER,
    )  # fmt: skip


def cpu_info(name: str, memory: int, free: int, speeds: Speeds) -> DeviceInfo:
    """A CPU, or with a number in its name one that pretends to be a card."""
    rate = speeds.operations or CPU_OPERATIONS * speeds.bandwidth
    floats = speeds.float_operations or CPU_FLOATS * rate
    # Copies from the host's memory to itself read and write.
    return DeviceInfo(
        name,
        memory,
        free,
        speeds.bandwidth,
        rate,
        speeds.bandwidth / 2,
        "CPU",
        name == "cpu",
        floats,
        speeds.unpacked,
    )


def parse_devices(
    text: str, here: DeviceInfo | None = None, card_here: Callable[[int], DeviceInfo] | None = None
) -> list[DeviceInfo]:
    """The devices of a text such as "2x rtx3090, cpu:64GB@50GB/s", cards as cuda:0, cuda:1 and so on.

    here, card_here: the CPU and the cards of this machine, whose memory and speeds count where the text does
    not say them. A card that is named several times is as many logical devices: cuda:0.0, cuda:0.1. A GB of
    memory is 2^30 bytes, one of speed 10^9. UsageError for what is no device.
    """
    found: list[DeviceInfo] = []
    for item in text.split(","):
        if not (match := _ITEM.fullmatch(item.strip())):
            shown = f"unknown device {item.strip()!r:.40}"
            raise UsageError(f"{shown}: write it as rtx3090, 2x rtx3090, cpu:64GB@50GB/s or cpu:0:2GB")
        if len(found) + int(match[1] or 1) > MOST_DEVICES:
            raise UsageError(_TOO_MANY)
        for _ in range(int(match[1] or 1)):
            cards = sum(device.name.startswith("cuda:") for device in found)
            found.append(_device(match, cards, here, card_here))
    if card_here:
        found = _logical(found, card_here)
    names = [short_name(device.name) for device in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"device {twice[0]} is there twice")
    return found


def no_names(text: str) -> list[str]:
    """The items that are no names of devices, limits or not, but unknown or descriptions, as rtx3090."""
    return [item.strip() for item in text.split(",") if not _is_name(_ITEM.fullmatch(item.strip()))]


def _is_name(match: re.Match[str] | None) -> bool:
    kinds = (_CPU, _CUDA)
    return bool(match and not match[5] and any(kind.fullmatch(match[2].strip().lower()) for kind in kinds))


def with_memory(text: str, sizes: str) -> str:
    """A text of devices in which cards have these limits, where they have none: "24GB", or one a card."""
    items, limits = _one_by_one(text), [size.strip() for size in sizes.split(",")]
    for limit in limits:
        if not re.fullmatch(r"[0-9.]+\s*[KMGT]?i?B", limit, re.IGNORECASE | re.ASCII):
            raise UsageError(f"--device-memory: {limit!r:.20} is no size: write it as 24GB")
    open_cards = [i for i, item in enumerate(items) if _is_open_card(item)]
    if not open_cards:
        raise UsageError("--device-memory: there is no card without a limit of its own")
    if len(limits) not in (1, len(open_cards)):
        raise UsageError(f"--device-memory gives {len(limits)} sizes for {len(open_cards)} cards")
    for at, limit in zip(open_cards, limits * (len(open_cards) if len(limits) == 1 else 1), strict=True):
        name, at_sign, speed = items[at].partition("@")
        items[at] = f"{name.strip()}:{limit}{at_sign}{speed}"
    return ",".join(items)


def _one_by_one(text: str) -> list[str]:
    """The items of a text of devices, each of which is one device: "2x rtx3090" is two."""
    items: list[str] = []
    for item in text.split(","):
        one = item.strip()
        match, times = _ITEM.fullmatch(one), 1
        if match and match[1]:
            times, one = int(match[1]), one[match.start(2) :]
        if len(items) + times > MOST_DEVICES:
            raise UsageError(_TOO_MANY)
        items += [one] * times
    return items


def _is_open_card(item: str) -> bool:
    """Whether it is a card, or pretends to be one, without a limit."""
    match = _ITEM.fullmatch(item)
    return bool(match and match[2].lower() != "cpu" and not match[3])


def _logical(found: list[DeviceInfo], card_here: Callable[[int], DeviceInfo]) -> list[DeviceInfo]:
    """The same devices; those that are on one card have names of their own, and its memory together.

    Devices without a limit share alike what the limits of the others leave.
    """
    cards: dict[str, list[DeviceInfo]] = {}
    for device in found:
        if match := _CUDA.match(device.name):
            cards.setdefault(match[1], []).append(device)
    changed: dict[int, DeviceInfo] = {}
    for index, devices in cards.items():
        if len(devices) == 1:
            continue
        free = card_here(int(index)).free
        limited = sum(device.free for device in devices if not device.shared)
        if limited > free:
            raise UsageError(
                f"cuda:{index} has {free >> 20} MiB free, its logical devices are to take {limited >> 20} MiB"
            )
        share = (free - limited) // max(1, sum(device.shared for device in devices))
        numbered = not any("." in device.name.split(":")[1] for device in devices)
        for part, device in enumerate(devices):
            name = device.name.replace(f":{index}", f":{index}.{part}", 1) if numbered else device.name
            changed[id(device)] = replace(device, name=name, free=share if device.shared else device.free)
    return [changed.get(id(device), device) for device in found]


def card_name(name: str) -> str:
    """The card of a device of this machine, which several may share: cuda:0 of cuda:0.1:8GB."""
    match = _CUDA.match(name)
    return f"cuda:{match[1]}" if match else name


def short_name(name: str) -> str:
    """A device's name without the limit of what pretends to be a card: cpu:0 of cpu:0:2GB."""
    host, slash, device = name.rpartition("/")
    return host + slash + ":".join(device.split(":")[:2])


def plain_name(text: str) -> str:
    """A device's name as ggrun writes it, of what a user may write, as llama.cpp does: CPU, CUDA0."""
    return re.sub(r"^(cuda)(\d+)$", r"\1:\2", text.strip().lower())


def _memory(match: re.Match[str]) -> int:
    return int(_number(match, 3, _BINARY, 1.0, 2.0**60)) if match[3] else 0


def _limit(match: re.Match[str]) -> str:
    """The memory as names of devices have it: 2GB, 0.5GB."""
    return f"{float(match[3]):.15g}{match[4].upper()}B"


def _speed(match: re.Match[str]) -> float:
    return _number(match, 5, _DECIMAL, 1e6, 1e16) if match[5] else 0.0


def _number(match: re.Match[str], group: int, units: Mapping[str, float], least: float, most: float) -> float:
    """The number in a group, of the unit in the next one; UsageError for what no device has."""
    try:
        if least <= (value := float(match[group]) * units[match[group + 1].upper()]) <= most:
            return value
    except ValueError:
        pass
    raise UsageError(
        f"device {match[0]!r:.40}: {match[group]!r:.20} is no number that a device could have there"
    )


def _device(
    match: re.Match[str],
    cards: int,
    here: DeviceInfo | None,
    card_here: Callable[[int], DeviceInfo] | None,
) -> DeviceInfo:
    name, memory, speed = match[2].strip(), _memory(match), _speed(match)
    if card_here and (of_here := _CUDA.fullmatch(name.lower())):
        info = card_here(int(of_here[1]))
        if of_here[2]:
            info = replace(info, name=f"{info.name}.{int(of_here[2])}")
        if not memory:
            return info
        there, free = min(memory, info.memory), min(memory, info.free)
        return replace(info, name=f"{info.name}:{_limit(match)}", memory=there, free=free, shared=False)
    if of_host := _CPU.fullmatch(name.lower()):
        if of_host[2] and int(of_host[2]) >= MOST_DEVICES and not match[3]:
            raise UsageError(f"{name} would be a device of that number: for its memory write {name}GB")
        plain = of_host[1] + (f":{int(of_host[2])}" if of_host[2] else "")
        info = _cpu(plain, memory, speed, here)
        if info.host or not memory:
            return info
        # What pretends to be a card has its limit in its name: the engine has to know it too.
        return replace(info, name=f"{plain}:{_limit(match)}")
    card = CARDS.get(key(name))
    if card is None and not (memory and speed):
        raise UsageError(
            f"unknown device {name!r:.40}: give its memory and bandwidth, as in card:24GB@900GB/s, "
            "or one of the cards that ggrun knows, as rtx3090"
        )
    return _card(f"cuda:{cards}", card or Card(name, 0, 0, 0, 3), memory, speed)


def _card(name: str, card: Card, memory: int, speed: float) -> DeviceInfo:
    size = memory or int(card.memory * 2**30)
    rate = speed or card.bandwidth * 1e9
    operations = CARD_PRODUCTS * (card.int8 * 1e12 or 200 * rate)  # 200: what cards with tensor cores have
    link = card.lanes * _LANE[card.pcie] if card.bandwidth else _DEFAULT_LINK
    return DeviceInfo(name, size, size, rate, operations, link, card.label)


def _cpu(name: str, memory: int, speed: float, here: DeviceInfo | None) -> DeviceInfo:
    if here is None and not (memory and speed):
        raise UsageError(f"--devices {name!r:.20}: give its memory and bandwidth, as cpu:64GB@50GB/s")
    rate = speed or (here.bandwidth if here else 0.0)
    speeds = Speeds(rate)
    if here:
        scale = rate / here.bandwidth
        operations = scale * here.operations, scale * here.float_operations
        speeds = Speeds(rate, *operations, unpacked=scale * here.unpacked)
    return cpu_info(
        name, memory or (here.memory if here else 0), memory or (here.free if here else 0), speeds
    )
