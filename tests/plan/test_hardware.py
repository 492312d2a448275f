"""Devices that are written, and the speeds that are known of cards."""

from dataclasses import replace
from math import isclose
from typing import Any

import pytest

from ggrun.errors import UsageError
from ggrun.plan import Plan, Stage, single, whole
from ggrun.plan.cards import CARDS
from ggrun.plan.cost import HOP, Clock, Place, predict
from ggrun.plan.facts import ModelFacts
from ggrun.plan.hardware import (
    DeviceInfo,
    Link,
    Speeds,
    card_info,
    cpu_info,
    no_names,
    parse_devices,
    with_memory,
)
from ggrun.plan.mixes import outline
from ggrun.plan.options import PlanOptions
from ggrun.plan.planner import make_plan
from ggrun.plan.rows import shared
from ggrun.plan.usage import Sizes


def facts_of(shape: str, mix: str = "Q4_K_M") -> ModelFacts:
    return ModelFacts.from_outline(outline(shape, mix))


def test_two_cards_and_a_cpu() -> None:
    a, b, cpu = parse_devices("2x rtx3090, cpu:64GB@50GB/s")
    assert (a.name, b.name, cpu.name) == ("cuda:0", "cuda:1", "cpu")
    assert a.memory == b.memory == 24 << 30
    assert (a.bandwidth, a.label) == (936e9, "RTX 3090")
    assert (cpu.memory, cpu.bandwidth, cpu.host) == (64 << 30, 50e9, True)


@pytest.mark.parametrize(
    ("text", "memory", "bandwidth"),
    [
        ("RTX 4060 Ti 16GB", 16 << 30, 288e9),
        ("NVIDIA GeForce RTX 5090", 32 << 30, 1792e9),
        ("tesla p40", 24 << 30, 347e9),
        ("a100-80gb", 80 << 30, 1935e9),
        ("rtx3090:20GB", 20 << 30, 936e9),
        ("rtx3090@800GB/s", 24 << 30, 800e9),
        ("my card:512MiB@1.5TB/s", 512 << 20, 1.5e12),
    ],
)
def test_cards(text: str, memory: int, bandwidth: float) -> None:
    (device,) = parse_devices(text)
    assert (device.name, device.memory, device.bandwidth) == ("cuda:0", memory, bandwidth)


def test_the_table_is_plausible() -> None:
    """Operations for each byte: 28 (P100, without a dot product of bytes) to 1226 (RTX 4060 Ti)."""
    assert len(CARDS) > 60
    for card in CARDS.values():
        assert 4 <= card.memory <= 200
        assert 100 <= card.bandwidth <= 8000
        assert 20 <= 1000 * card.int8 / card.bandwidth <= 1300
        assert card.pcie in (3, 4, 5)


def test_devices_that_pretend_keep_their_limits_in_their_names() -> None:
    here = cpu_info("cpu", 16 << 30, 8 << 30, Speeds(40e9))
    a, b, c, d = parse_devices("cpu:0:2GB, cpu:1:512MiB, cpu, emulated:0:1GB", here)
    assert [x.name for x in (a, b, c, d)] == ["cpu:0:2GB", "cpu:1:512MB", "cpu", "emulated:0:1GB"]
    assert (a.free, b.free, c.free, d.free) == (2 << 30, 512 << 20, 8 << 30, 1 << 30)
    assert a.bandwidth == c.bandwidth == 40e9
    assert a.usable(1 << 30) == 2 << 30
    assert c.usable(1 << 30) == 7 << 30


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rtx9999", "unknown device 'rtx9999'"),
        ("33x rtx3090", "no more than 32 devices"),
        ("1000x rtx3090", "no more than 32 devices"),
        ("cpu:64", "for its memory write cpu:64GB"),
        ("rtx9999:24GB", "24GB@900GB/s"),
        ("", "write it as"),
        ("rtx3090,,cpu", "write it as"),
        ("cpu", "64GB@50GB/s"),
        ("cpu:64GB", "64GB@50GB/s"),
        ("cpu:64GB@50GB/s,cpu:1GB@1GB/s", "cpu is there twice"),
        ("2x cpu:64GB@50GB/s", "cpu is there twice"),
        ("rtx3090:0GB", "no number that a device could have"),
        ("rtx3090:1.2.3GB", "no number that a device could have"),
    ],
)
def test_what_is_no_device(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as error:
        parse_devices(text)
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------- published and measured speeds

# github.com/XiongjieDai/GPU-Benchmarks-on-LLM-Inference, May 2024: llama.cpp, Q4_K_M, tg512 and pp512.
PUBLISHED = [
    ("llama-3-70b", "2x rtx3090", 16.57, 357.32, 0.15),
    ("llama-3-70b", "2x rtx4090", 19.22, 839.43, 0.15),
    ("llama-3-8b", "rtx3090", 115.42, 4030.40, 0.15),
    ("llama-3-8b", "rtx4090", 130.58, 7138.99, 0.15),
    ("llama-3-8b", "rtx4080", 108.15, 5389.74, 0.15),
    ("llama-3-8b", "rtx3070", 72.79, 2402.51, 0.15),
]


@pytest.mark.parametrize(("shape", "cards", "decode", "prefill", "within"), PUBLISHED)
def test_predictions_are_near_what_was_published(
    shape: str, cards: str, decode: float, prefill: float, within: float
) -> None:
    facts, devices = facts_of(shape), parse_devices(cards)
    # Its speed at 512, where prompts are one micro-batch.
    planned = make_plan(facts, devices, PlanOptions(n_ctx=512))
    names = [device.name for device in devices]
    if len(devices) > 1:
        assert list(planned.uses) == names
    assert isclose(planned.speed.decode, decode, rel_tol=within)
    assert isclose(planned.speed.prefill, prefill, rel_tol=0.25)


# benchmarks/2026-11-26-h100-gpu-check.md and -h200-gpu-check.md: the copy bandwidth in GB/s, tg128.
MEASURED = [
    ("llama-3-8b", "Q4_K_M", 3004, 414),
    ("llama-3-8b", "Q8_0", 3004, 306),
    ("llama-3-70b", "Q4_K_M", 3004, 61.1),
    ("llama-3-8b", "Q4_K_M", 4251, 427),
    ("llama-3-8b", "Q8_0", 4251, 353),
    ("llama-3-70b", "Q4_K_M", 4251, 73.9),
]


@pytest.mark.parametrize(("shape", "mix", "bandwidth", "decode"), MEASURED)
def test_predictions_are_near_what_was_measured_on_cards(
    shape: str, mix: str, bandwidth: float, decode: float
) -> None:
    found = card_info("cuda:0", "", 80 << 30, 80 << 30, Speeds(bandwidth * 1e9, 5e14, 2e14, 5e10))
    planned = make_plan(facts_of(shape, mix), [found], PlanOptions(n_ctx=512))
    assert isclose(planned.speed.decode, decode, rel_tol=0.16)


def test_a_pipeline_overlaps_micro_batches() -> None:
    """Four micro-batches through two equal stages take the time of five halves and not of eight."""
    facts = facts_of("llama-3-70b")
    devices = {d.name: d for d in parse_devices("2x rtx3090")}
    halves = facts.config.layers
    ends = [whole(facts.config, name) for name in devices]
    two = Plan((Stage((0, halves), (ends[0],)), Stage((halves, 2 * halves), (ends[1],))))
    one = single(facts.config, "cuda:0")
    times = [predict(facts, plan, Sizes(2048), devices).prompt for plan in (one, two)]
    assert isclose(times[1] / times[0], 5 / 8, rel_tol=0.02)


def test_rows_read_at_once_and_pay_for_their_sums() -> None:
    facts = facts_of("llama-3-70b")
    layer = make_plan(facts, parse_devices("2x rtx3090"), PlanOptions(n_ctx=8192)).speed
    row = make_plan(facts, parse_devices("2x rtx3090"), PlanOptions(n_ctx=8192, split_mode="row")).speed
    assert layer.token / 2 < row.token < layer.token


def test_a_sum_costs_more_with_more_members() -> None:
    """Two send each other what they have; more send a share to each of the others, and one of the sums."""
    facts, clocks = facts_of("llama-3-70b"), []
    for n in (2, 3, 8):
        planned = make_plan(facts, parse_devices(f"{n}x rtx3090"), PlanOptions(n_ctx=2048, split_mode="row"))
        place = Place(planned.devices, planned.plan.stages[0].members)
        clock = Clock(facts, planned.sizes)
        members = zip(place.devices, place.members, strict=True)
        alone = max(clock.batch(1, Place((device,), (member,))) for device, member in members)
        clocks.append(clock.batch(1, place) - alone)
    sent = 512 * 8192 * 4 / place.devices[0].link * 1e12
    hop = HOP * 1e12
    assert clocks == pytest.approx([hop + sent, 2 * hop + 4 / 3 * sent, 2 * hop + 7 / 4 * sent], rel=1e-9)


def linked(devices: list[DeviceInfo], **links: Link) -> list[DeviceInfo]:
    """Devices with links by their numbers: _01 is the one from the first to the second."""

    def peers(i: int) -> tuple[tuple[str, Link], ...]:
        return tuple((f"cuda:{name[2]}", link) for name, link in links.items() if name[1] == str(i))

    return [replace(device, peers=peers(i)) for i, device in enumerate(devices)]


def test_links_that_were_measured_count() -> None:
    facts = facts_of("llama-3-70b")
    fast, slow = Link(True, 50e9, 8e-6), Link(False, 4e9, 60e-6, "bytes came wrong")
    a, b, c = linked(parse_devices("3x rtx3090"), _01=fast, _10=slow, _02=Link(True))
    clock, row = Clock(facts, Sizes(2048)), 4 * facts.config.width
    assert clock.move([a], [b], 7) == approx_ps(8e-6 + 7 * row / 50e9)
    assert clock.move([b], [a], 7) == approx_ps(60e-6 + 7 * row / 4e9)
    for other in (c, replace(c, name="cpu")):  # what was not measured is guessed
        assert clock.move([a], [other], 7) == approx_ps(HOP + 7 * row / a.link)
    assert clock.move([a, b], [a]) == 0
    parts = [replace(a, name=name) for name in ("cuda:0.0", "cuda:0.1:8GB")]  # of one card
    assert clock.move(parts[:1], parts[1:], 7) == approx_ps(HOP + 2 * 7 * row / a.bandwidth)
    assert clock.move(parts[1:], [b]) == clock.move([a], [b])
    assert clock.move([a], [a, b]) == clock.move([a], [b])


def test_a_sum_takes_as_long_as_its_slowest_member() -> None:
    """Of three cards each sends to two, one copy after the other."""
    facts = facts_of("llama-3-70b")
    quick, slow = Link(True, 50e9, 8e-6), Link(False, 4e9, 60e-6)
    names = ("_01", "_10", "_02", "_20", "_12", "_21")
    devices = linked(parse_devices("3x rtx3090"), **dict.fromkeys(names, quick) | {"_21": slow})
    members = shared(facts, [device.name for device in devices], [1, 1, 1])
    place = Place(tuple(devices), members)
    clock, row = Clock(facts, Sizes(2048)), 4 * facts.config.width
    alone = max(clock.share(1, member, device) for member, device in zip(members, devices, strict=True))
    assert clock.token(1, place) - alone == approx_ps(60e-6 + row / 4e9 + row / 50e9)


def test_predictions_follow_links() -> None:
    """Two sums a layer in mode row, one copy in mode layer."""
    facts, found = facts_of("llama-3-70b"), []
    for link in (Link(True, 50e9, 8e-6), Link(False, 4e9, 60e-6)):
        devices = linked(parse_devices("2x rtx3090"), _01=link, _10=link)
        for mode in ("row", "layer"):
            found.append(make_plan(facts, devices, PlanOptions(n_ctx=2048, split_mode=mode)).speed.token)
    sums, row = 2 * facts.config.layers, 4 * facts.config.width
    once = (60e-6 + row / 4e9) - (8e-6 + row / 50e9)
    assert found[2] - found[0] == pytest.approx(sums * once * 1e12, rel=1e-6)
    assert found[3] - found[1] == pytest.approx(once * 1e12, rel=1e-6)


def approx_ps(seconds: float) -> Any:
    return pytest.approx(seconds * 1e12, rel=1e-9, abs=1)


def test_float_weights_have_a_rate_of_their_own() -> None:
    cpu = cpu_info("cpu", 1, 1, Speeds(40e9, 4e12, 1e12))
    assert cpu.products(3, 0, 0, 1) == 6 / 4e12
    assert cpu.products(3, 2, 0, 10) == pytest.approx(10 * (2 / 4e12 + 4 / 1e12))
    slow = cpu_info("cpu", 1, 1, Speeds(40e9, 4e12, 1e12, unpacked=1e9))
    assert slow.products(3, 0, 2, 10) == pytest.approx(60 / 4e12 + 2 / 1e9)
    f16, q8_0 = facts_of("llama-3-8b", "F16"), facts_of("llama-3-8b", "Q8_0")
    assert [p.floats for p in q8_0.parts[:2]] == [{"heads": 0, "kv_heads": 0}, {"ff": 0}]
    assert [p.floats for p in f16.parts[:2]] == [p.weights for p in f16.parts[:2]]


# ---------------------------------------------------------------- logical devices


def card(index: int) -> DeviceInfo:
    return card_info(f"cuda:{index}", "H200", 40 << 30, 30 << 30, Speeds(4e12, 1e15, 5e14, 5e10))


def seen(text: str) -> list[tuple[str, int, bool]]:
    """Names, free GiB, and whether a margin is left."""
    return [(d.name, d.free >> 30, d.shared) for d in parse_devices(text, card_here=card)]


def test_a_card_named_twice_is_two_devices_that_share_its_memory() -> None:
    assert seen("cuda:0") == [("cuda:0", 30, True)]
    assert seen("cuda:0,cuda:1") == [("cuda:0", 30, True), ("cuda:1", 30, True)]
    assert seen("cuda:0,cuda:0") == [("cuda:0.0", 15, True), ("cuda:0.1", 15, True)]
    assert seen("cuda:0:24GB,cuda:0") == [("cuda:0.0:24GB", 24, False), ("cuda:0.1", 6, True)]
    assert seen("cuda:0.1:8GB,cuda:1,cuda:0.0") == [
        ("cuda:0.1:8GB", 8, False), ("cuda:1", 30, True), ("cuda:0.0", 22, True),
    ]  # fmt: skip
    assert seen("cuda:10,cuda:10:1GB")[1] == ("cuda:10.1:1GB", 1, False)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cuda:0:16GB,cuda:0:16GB", "cuda:0 has 30720 MiB free, its logical devices are to take 32768 MiB"),
        ("cuda:0.1,cuda:0.1:8GB", "cuda:0.1 is there twice"),
        ("cpu:0.1:8GB", "unknown device 'cpu:0.1'"),
    ],
)
def test_logical_devices_that_cannot_be(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_devices(text, card_here=card)


def test_no_limit_gives_a_card_memory() -> None:
    (large,) = parse_devices("cuda:0:999GB", card_here=card)
    assert (large.memory >> 30, large.free >> 30) == (40, 30)


def test_descriptions_are_no_names() -> None:
    assert no_names("cuda:0, CPU:0:8GB,cpu,2x cuda:1,cuda:0.1:2GB,emulated:0:1GB") == []
    described = ["rtx3090", "2x rtx3090", "card:24GB@900GB/s", "cpu:0@50GB/s", "cuda", "tpu:0", ""]
    assert no_names(f"cuda:0,{','.join(described)}") == described


def test_the_memory_of_cards() -> None:
    assert with_memory("cuda:0, cuda:0,cpu", "24GB") == "cuda:0:24GB,cuda:0:24GB,cpu"
    assert with_memory("cuda:0,cuda:1:8GB,2x rtx3090@900GB/s,cpu:64GB@50GB/s,cpu:0", "1GB,2 GiB,3GB,4MB") == (
        "cuda:0:1GB,cuda:1:8GB,rtx3090:2 GiB@900GB/s,rtx3090:3GB@900GB/s,cpu:64GB@50GB/s,cpu:0:4MB"
    )
    for devices, sizes, said in (
        ("cuda:0,2x rtx3090,cpu", "1GB,2GB", "2 sizes for 3 cards"),
        ("cuda:0", "24", "'24' is no size"),
        ("cpu", "", "'' is no size"),
        ("cpu", "1XB", "'1XB' is no size"),
        ("cpu,cuda:0:1GB", "1GB", "no card without a limit"),
        ("33x rtx3090", "1GB", "no more than 32"),
        ("1000x rtx3090", "1GB", "no more than 32"),
    ):
        with pytest.raises(UsageError, match=said):
            with_memory(devices, sizes)
