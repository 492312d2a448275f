"""Feed-forwards of the CPU that cards compute for prompts: from how many tokens on, and which."""

from dataclasses import replace

import pytest

from ggrun.plan import Plan, Stage, whole
from ggrun.plan.cost import HOP
from ggrun.plan.facts import ModelFacts
from ggrun.plan.hardware import DeviceInfo, parse_devices
from ggrun.plan.mixes import outline
from ggrun.plan.offload import SLOTS, Offload, Offloads, offloads
from ggrun.plan.planned import Planned
from ggrun.plan.report import flags, notes
from ggrun.plan.rows import shared
from ggrun.plan.usage import Sizes
from tests.plan.test_planner import plan

MACHINE = "rtx3090, cpu:64GB@50GB/s"
ROOM = {"cuda:0": 1 << 40, "cuda:1": 1 << 40}
F = ModelFacts.from_outline(outline("llama-3-8b", "Q4_K_M"))
LAST = 2 * F.config.layers


def planned(devices: str = MACHINE, **options: object) -> Planned:
    return plan("llama-3-8b", devices, **{"n_cpu_ffn": 8, "n_ctx": 4096} | options)


def test_from_where_on_it_pays() -> None:
    """By arithmetic of its own: from there on the card is sooner done, and with a token less it is not."""
    p = planned()
    card, cpu = p.devices
    assert len(p.offloads) == 8
    for i, offload in p.offloads.items():
        assert offload.card == "cuda:0"
        (half, _), weights = p.plan.stages[i].halves, 3 * 4096 * 14336
        nbytes = F.part(half).total

        def sooner(n: int, nbytes: int = nbytes, weights: int = weights) -> bool:
            here = max(nbytes / (cpu.bandwidth * cpu.efficiency), 2 * n * weights / cpu.operations)
            there = max(nbytes / (card.bandwidth * card.efficiency), 2 * n * weights / card.operations)
            return max(nbytes / card.link, there + card.half_layer) < here + cpu.half_layer

        assert sooner(offload.least)
        assert not sooner(offload.least - 1)
        assert offload.nbytes >= max(F.part(2 * i + 1).total for i in range(8))


def test_prompts_are_predicted_with_it() -> None:
    """For each feed-forward what the card takes and not what the CPU does, and no way there and back."""
    with_it, without = planned(n_ctx=512), planned(n_ctx=512, op_offload=False)
    assert without.offloads == {}
    assert with_it.plan == without.plan
    assert with_it.speed.token == without.speed.token
    card, cpu = with_it.devices
    ways = 16 * (HOP + 4 * 512 * 4096 / min(card.link, cpu.link))  # to the CPU and back
    weights = 3 * 4096 * 14336
    saved = ways + 8 * (2 * 512 * weights / cpu.operations + cpu.half_layer)
    saved -= sum(
        max(F.part(with_it.plan.stages[i].halves[0]).total / card.link,
            2 * 512 * weights / card.operations + card.half_layer)
        for i in with_it.offloads
    )  # fmt: skip
    assert (without.speed.prompt - with_it.speed.prompt) / 1e12 == pytest.approx(saved, rel=1e-6)
    assert with_it.speed.prefill > 2 * without.speed.prefill


def test_where_the_cpu_is_as_fast_it_goes_on() -> None:
    assert planned("slow:24GB@1GB/s, cpu:64GB@50GB/s").offloads == {}


def test_experts_need_larger_batches_than_dense_layers() -> None:
    """All of them come, and each serves few tokens."""
    dense = planned(n_ubatch=2048).offloads.values()
    experts = plan("qwen3-30b-a3b", MACHINE, cpu_moe=True, n_ctx=4096, n_ubatch=2048).offloads.values()
    assert min(offload.least for offload in experts) > 4 * max(offload.least for offload in dense)


def test_batches_that_are_never_so_large() -> None:
    least = min(offload.least for offload in planned().offloads.values())
    assert planned(n_ubatch=least).offloads
    assert planned(n_ubatch=least - 1).offloads == {}


# ---------------------------------------------------------------- which stages, and which card


def written(*parts: tuple[str, int]) -> Plan:
    """Stages of one member: a device and where its half layers end."""
    ends = [0, *(end for _, end in parts)]
    return Plan(tuple(Stage((ends[i], end), (whole(F.config, name),)) for i, (name, end) in enumerate(parts)))


def found(written: Plan, room: dict[str, int] = ROOM) -> Offloads:
    names = dict.fromkeys(member.device for stage in written.stages for member in stage.members)
    infos = parse_devices(f"2x rtx3090, {MACHINE.partition(',')[2]}")
    like: dict[str, DeviceInfo] = {info.name: info for info in infos}
    devices = {name: replace(like.get(name, infos[0]), name=name) for name in [*names, "cpu"]}
    return offloads(F, written, Sizes(4096), devices, room)


@pytest.mark.parametrize("name", ["cuda:0", "cuda:1", "emulated:0"])
def test_by_the_card_before(name: str) -> None:
    layout = written(("cuda:0", 2), (name, 5), ("cpu", 6), ("cuda:0", LAST))
    assert [(i, o.card) for i, o in found(layout, {**ROOM, name: 1 << 40}).items()] == [(2, name)]


@pytest.mark.parametrize(
    "layout",
    [
        written(("cpu", 5), ("cuda:0", LAST)),  # with the embedding, from the CPU on
        written(("cuda:0", 4), ("cpu", 6), ("cuda:0", LAST)),  # a whole layer, with its cells
        written(("cuda:0", 5), ("cpu", 7), ("cuda:0", LAST)),  # an attention behind it
        written(("cuda:0", 6), ("cpu", 7), ("cuda:0", LAST)),  # an attention
        written(("cuda:0", LAST - 1), ("cpu", LAST)),  # with the output
        written(("cuda:0", 5), ("cuda:1", 6), ("cuda:0", LAST)),  # of a card
        written(("cpu:0", 5), ("cpu", 6), ("cpu:0", LAST)),  # pretends to be one
        written(("far:50052/cuda:0", 5), ("cpu", 6), ("cuda:0", LAST)),  # of another machine
        written(("cuda:0", LAST)),
    ],
)
def test_what_stays_as_it_is(layout: Plan) -> None:
    assert found(layout, dict.fromkeys((*ROOM, "cpu", "cpu:0", "far:50052/cuda:0"), 1 << 40)) == {}


def test_the_first_of_cards_that_share_rows_needs_more_buffers() -> None:
    cards = shared(F, ["cuda:0", "cuda:1"], [1, 1])
    alone = written(("cuda:0", 5), ("cpu", 6), ("cuda:0", LAST))
    first, *others = alone.stages
    rows = Plan((replace(first, members=cards), *others[:-1], replace(others[-1], members=cards)))

    def least_room(layout: Plan) -> int:
        low, high = 0, 1 << 34
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if found(layout, {"cuda:0": middle}) else (middle, high)
        return high

    (offload,) = found(rows).values()
    assert offload == Offload("cuda:0", offload.least, offload.nbytes)
    assert least_room(rows) > least_room(alone) > SLOTS * offload.nbytes


def test_a_card_has_room_or_does_not() -> None:
    layout = written(
        ("cuda:0", 5), ("cpu", 6), ("cuda:0", 9), ("cpu", 10), ("cuda:1", 15), ("cpu", 16), ("cuda:1", LAST)
    )
    every = found(layout)
    assert [o.card for o in every.values()] == ["cuda:0", "cuda:0", "cuda:1"]
    assert {i: o.card for i, o in found(layout, {**ROOM, "cuda:0": 1 << 20}).items()} == {5: "cuda:1"}
    assert found(layout, {"cuda:0": -1, "cuda:1": 0}) == {}


@pytest.mark.parametrize("devices", ["rtx3090", "2x rtx3060:10GB", "rtx3090:16GB, rtx3060:9GB"])
def test_what_overflows_leaves_room_for_it(devices: str) -> None:
    """Tokens take a little longer, as slots take the room of a layer; prompts a small part of the time."""
    machine = f"{devices}, cpu:64GB@50GB/s"
    without = plan("llama-3-70b", machine, n_ctx=4096, op_offload=False)
    with_it = plan("llama-3-70b", machine, n_ctx=4096)
    assert with_it.fits
    halves = [stage.halves for stage in with_it.plan.stages if stage.members[0].device == "cpu"]
    assert halves == [(0, 0), *((i, i + 1) for i in range(1, 2 * with_it.settled.cpu_ffn, 2))]
    assert len(with_it.offloads) == with_it.settled.cpu_ffn  # each of them
    assert with_it.speed.decode > 0.85 * without.speed.decode
    assert with_it.speed.prefill > 10 * without.speed.prefill
    assert with_it.speed.pace < without.speed.pace
    by_flags = plan(
        "llama-3-70b", machine, n_ctx=4096, n_gpu_layers=81, n_cpu_ffn=with_it.settled.cpu_ffn,
        tensor_split=[float(x) for x in flags(with_it)[-1].split(",")] if "-ts" in flags(with_it) else None,
    )  # fmt: skip
    assert (by_flags.plan, by_flags.offloads) == (with_it.plan, with_it.offloads)


@pytest.mark.parametrize(
    "fields", [{"n_gpu_layers": 40}, {"n_cpu_ffn": 40}, {"tensor_split": (1.0, 1.0)}, {"split_mode": "row"}]
)
def test_what_the_user_says_leaves_no_more_room(fields: dict[str, object]) -> None:
    machine = "2x rtx3060:10GB, cpu:64GB@50GB/s"
    plans = [plan("llama-3-70b", machine, n_ctx=4096, op_offload=wish, **fields) for wish in (True, False)]
    assert plans[0].plan == plans[1].plan


def test_experts_that_overflow_stay_where_tokens_are_fastest() -> None:
    """Slots for all experts of a layer take the room of several: more than prompts gain."""
    plans = [plan("mixtral-8x7b", MACHINE, n_ctx=4096, op_offload=wish).plan for wish in (True, False)]
    assert plans[0] == plans[1]


# ---------------------------------------------------------------- what is said


def test_notes_and_flags() -> None:
    offloaded = planned()
    leasts = sorted({offload.least for offload in offloaded.offloads.values()})
    (note,) = [note for note in notes(offloaded) if "feed-forwards" in note]
    assert note == (
        "cuda:0 computes 8 of the CPU's feed-forwards where a batch has "
        f"{leasts[0]} to {leasts[-1]} tokens or more"
    )
    assert "--no-op-offload" not in flags(offloaded)
    without = planned(op_offload=False)
    assert not [note for note in notes(without) if "feed-forwards" in note]
    assert "--no-op-offload" in flags(without)
