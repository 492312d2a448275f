"""Rows inside, layers outside: groups of cards, each of which shares every matrix of its layers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gguf import GGMLQuantizationType

from ggrun import LLM, UsageError
from ggrun.gguf import Outline
from ggrun.plan import host_of
from ggrun.plan.facts import ModelFacts
from ggrun.plan.hardware import DeviceInfo, parse_devices
from ggrun.plan.mixes import outline
from ggrun.plan.options import PlanOptions, parse_groups
from ggrun.plan.planned import Planned
from ggrun.plan.planner import make_plan
from ggrun.plan.report import flags, left_out, remedy
from tests.tiny import Tiny

FOUR = "4x rtx4080"  # of 16 GB: 70B needs all of them


def plan(devices: str, **fields: object) -> Planned:
    facts = ModelFacts.from_outline(outline("llama-3-70b", "Q4_K_M"))
    options = PlanOptions(**{"split_mode": "row", "n_ctx": 4096, **fields})  # type: ignore[arg-type]
    return make_plan(facts, parse_devices(devices), options)


def members(planned: Planned) -> list[tuple[str, ...]]:
    return [tuple(m.device for m in stage.members) for stage in planned.plan.stages]


def test_pairs_of_cards() -> None:
    planned = plan(FOUR, row_groups=(2, 2))
    assert planned.fits
    assert members(planned) == [("cuda:0", "cuda:1"), ("cuda:2", "cuda:3")]
    by_layer, by_row = plan(FOUR, split_mode="layer"), plan(FOUR)
    assert by_layer.speed.token > planned.speed.token > by_row.speed.token


def test_groups_of_other_sizes_and_shares() -> None:
    smaller = "4x rtx4080:13GB"
    assert members(plan(smaller, row_groups=(1, 3))) == [("cuda:0",), ("cuda:1", "cuda:2", "cuda:3")]
    planned = plan(FOUR, row_groups=(2, 2), tensor_split=(1, 1, 3, 1))
    shares = [[m.ff[1] - m.ff[0] for m in stage.members] for stage in planned.plan.stages]
    assert shares[0][0] == shares[0][1]
    assert shares[1][0] == pytest.approx(3 * shares[1][1], rel=0.05)
    assert members(plan(FOUR, row_groups=(2, 2), tensor_split=(1, 0, 1, 1)))[0] == ("cuda:0",)


def test_why_cards_are_left_out() -> None:
    """-ts shares rows in each group: a group that gets no layers has no share of them for another reason."""
    planned = plan("2x rtx4090:70GB, 2x rtx3060", row_groups=(2, 2), tensor_split=(1, 0, 1, 1))
    slower = ": with it, tokens would take longer"
    assert list(left_out(planned)) == [
        "cuda:1 is left out by -ts", f"cuda:2 is left out{slower}", f"cuda:3 is left out{slower}"
    ]  # fmt: skip


def test_the_flags_that_are_told_give_the_plan() -> None:
    planned = plan(f"{FOUR}, cpu:64GB@50GB/s", row_groups=(2, 2))
    told = flags(planned)
    assert told[told.index("--row-groups") + 1] == "2,2"
    ratios = tuple(map(float, told[told.index("-ts") + 1].split(",")))
    layers = int(told[told.index("-ngl") + 1])
    again = plan(f"{FOUR}, cpu:64GB@50GB/s", row_groups=(2, 2), tensor_split=ratios, n_gpu_layers=layers)
    assert again.plan == planned.plan


def test_auto_takes_groups_for_rows() -> None:
    assert len(plan(FOUR, split_mode="auto", row_groups=(2, 2)).plan.stages) == 2


def test_the_cpu_has_what_groups_have_no_room_for() -> None:
    planned = plan("rtx4090, 3x rtx3060, cpu:64GB@50GB/s", row_groups=(1, 3), n_ctx=65536, op_offload=False)
    assert planned.fits
    assert planned.uses.keys() == {"cuda:0", "cuda:1", "cuda:2", "cuda:3", "cpu"}
    assert planned.settled.ratios == (1, 1, 1, 1)


def test_what_does_not_fit_is_shown_over_all_groups() -> None:
    planned = plan("4x rtx4080:8GB", row_groups=(1, 3))
    assert not planned.fits
    assert members(planned) == [("cuda:0",), ("cuda:1", "cuda:2", "cuda:3")]
    halves = [stage.halves[1] - stage.halves[0] for stage in planned.plan.stages]
    assert halves[1] == pytest.approx(3 * halves[0], rel=0.1)


def test_groups_that_do_not_fit_where_others_would() -> None:
    planned = plan("rtx4080:2GB, 3x rtx4080:19GB", row_groups=(2, 2))
    assert not planned.fits
    assert remedy(planned) == "give no --row-groups, or other ones"


def test_the_cards_of_each_machine_are_a_group(tmp_path: Path) -> None:
    """Where -sm row has cards of several."""
    path = Tiny(layers=6, width=128, ff=256, format=GGMLQuantizationType.Q8_0).write(tmp_path / "model.gguf")
    facts = ModelFacts.from_outline(Outline.read(path))
    far = DeviceInfo("far:50052/cuda:0", 1 << 30, 1 << 30, 1e9, 1e12, 10e9, network=1e9, latency=1e-6)
    here = replace(far, name="cuda:0", network=0.0, latency=0.0)
    four = [far, replace(far, name="far:50052/cuda:1"), here, replace(here, name="cuda:1")]
    options = PlanOptions(split_mode="row", n_ctx=64, fit_margin=0)
    needed = make_plan(facts, four, options).uses
    four = [replace(card, free=max(use.total for use in needed.values()) - 1) for card in four]
    planned = make_plan(facts, four, options)
    assert planned.fits
    hosts = [{host_of(member.device) for member in stage.members} for stage in planned.plan.stages]
    assert [len(each) for each in hosts] == [1, 1]
    assert [len(stage.members) for stage in planned.plan.stages] == [2, 2]
    auto = make_plan(facts, four[::2], replace(options, split_mode="auto"))
    assert auto.options.split_mode == "layer", "one card a machine"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"row_groups": (2, 1)}, "^--row-groups has room for 3 cards, and there are 4$"),
        ({"row_groups": ()}, "^--row-groups: how many cards each group has, as 2,2$"),
        ({"row_groups": (4, 0)}, "^--row-groups: how many"),
        ({"row_groups": (2.0, 2.0)}, "^row_groups is .* it must be a list of whole numbers$"),
        (
            {"row_groups": (2, 2), "split_mode": "layer"},
            "^--row-groups is for -sm row, and this is -sm layer$",
        ),
    ],
)
def test_what_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan(FOUR, **fields)


def test_a_group_is_of_one_machine(tmp_path: Path) -> None:
    facts = ModelFacts.from_outline(Outline.read(Tiny(layers=2).write(tmp_path / "model.gguf")))
    far = DeviceInfo("far:50052/cuda:0", 1 << 30, 1 << 30, 1e9, 1e12, 10e9, network=1e9, latency=1e-6)
    here = replace(far, name="cuda:0", network=0.0, latency=0.0)
    with pytest.raises(
        UsageError, match=r"^--row-groups: far:50052/cuda:0 and cuda:0 are on several machines$"
    ):
        make_plan(facts, [far, here], PlanOptions(split_mode="row", row_groups=(2,)))


def test_text() -> None:
    assert parse_groups("2, 2") == (2, 2)
    with pytest.raises(
        UsageError, match=r"^--row-groups '2;2': numbers of cards with commas between, as 2,2$"
    ):
        parse_groups("2;2")


def test_the_same_text_as_on_one_device(tmp_path: Path) -> None:
    path = Tiny(layers=8, heads=4, kv_heads=4, width=128, ff=256).write(tmp_path / "model.gguf")
    exact: Any = {"cache_type_k": "f32", "cache_type_v": "f32"}
    with LLM(path, n_ctx=64, devices="emulated:0:1GB", **exact) as llm:
        want = llm.logits(list(range(20)))

    def grouped(limit: str) -> LLM:
        devices = ",".join(f"emulated:{i}:{limit}" for i in range(4))
        return LLM(
            path, n_ctx=64, devices=devices, split_mode="row", row_groups=(2, 2), fit_margin=0, **exact
        )

    with grouped("1GB") as llm:
        needed = max(use.total for use in llm.planned.uses.values())
    with grouped(f"{(needed >> 10) - 1}KB") as llm:
        assert [len(stage.members) for stage in llm.planned.plan.stages] == [2, 2]
        got = llm.logits(list(range(20)))
    assert abs(got - want).max() < 1e-4
