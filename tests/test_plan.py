"""Plans as data, and stages that hand the residual stream to each other."""

import json
from functools import reduce
from itertools import pairwise
from operator import getitem
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from ggrun import LLM, UsageError
from ggrun.arch.config import Config
from ggrun.gguf import GGUF
from ggrun.plan import Member, Plan, Stage, single, whole
from tests.tiny import Tiny


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return Tiny(layers=3).write(tmp_path / "model.gguf")


def test_json_round_trip(path: Path) -> None:
    plan = single(Config.from_gguf(GGUF(path)), "cpu")
    assert plan.stages[0].halves == (0, 6)
    assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"stages": 3}',
        '{"stages": [{"halves": [2, 1], "members": []}]}',
        '{"stages": [[]]}',
        "[" * 100_000,
    ],
)
def test_text_that_is_no_plan(text: str) -> None:
    with pytest.raises(UsageError, match="not a plan"):
        Plan.from_json(text)


@pytest.mark.parametrize("where", [(), ("stages", 0), ("stages", 0, "members", 0)])
def test_keys_that_say_nothing_are_refused(where: tuple[Any, ...], path: Path) -> None:
    data = json.loads(single(Config.from_gguf(GGUF(path)), "cpu").to_json())
    reduce(getitem, where, data)["layers\n"] = [0, 3]
    with pytest.raises(UsageError, match=r"^not a plan: a (plan|stage|member) has .*, and no 'layers\\n'$"):
        Plan.from_json(json.dumps(data))


@pytest.mark.parametrize("cuts", [[0, 6], [0, 1, 6], [0, 2, 4, 6], [0, 3, 5, 6], [0, 1, 2, 3, 4, 5, 6]])
def test_stages_compute_what_one_does(path: Path, cuts: list[int]) -> None:
    member = whole(Config.from_gguf(GGUF(path)), "cpu")
    plan = Plan(tuple(Stage((a, b), (member,)) for a, b in pairwise(cuts)))
    tokens = list(range(1, 30))
    with LLM(path, n_ubatch=8) as one, LLM(path, plan=plan, n_ubatch=8) as several:
        np.testing.assert_allclose(several.logits(tokens), one.logits(tokens), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("halves", [[(0, 5)], [(1, 6)], [(0, 3), (4, 6)], [(0, 3), (2, 6)], [(0, 8)]])
def test_plans_that_do_not_cover_the_model(path: Path, halves: list[tuple[int, int]]) -> None:
    member = whole(Config.from_gguf(GGUF(path)), "cpu")
    with pytest.raises(UsageError, match="plan"):
        LLM(path, plan=Plan(tuple(Stage(h, (member,)) for h in halves)))


WHOLE = Member("cpu", (0, 4), (0, 2), (0, 96))


@pytest.mark.parametrize(
    "members",
    [
        (),
        (Member("cpu", (0, 4_000_000), (0, 2), (0, 96)),),
        (Member("cpu", (0, 4), (0, 2), (0, 50_000_000)),),
        (Member("cpu", (0, 4), (0, 0), (0, 96)),),
        (Member("cpu", (0, 2), (0, 2), (0, 96)),),
        (Member("cpu", (0, 2), (0, 1), (0, 96)),),
        (Member("cpu", (0, 4), (0, 2), (0, 95)),),
        (Member("cpu", (0, 4), (0, 2), (1, 96)),),
        (Member("cpu", (0, 4), (-1, 2), (0, 96)),),
        (Member("cpu", (0, 4), (2, 0), (0, 96)),),
        (Member("cpu", (0.0, 4), (0, 2), (0, 96)),),  # type: ignore[arg-type]
        (Member("cpu", None, (0, 2), (0, 96)),),  # type: ignore[arg-type]
        (WHOLE, WHOLE),
        (Member("cpu", (2, 4), (1, 2), (48, 96)), Member("cpu", (0, 2), (0, 1), (0, 48))),
        (Member("cpu", (0, 2), (0, 1), (0, 48)), Member("cpu", (2, 4), (1, 2), (47, 96))),
        (Member("cpu", (0, 1), (0, 1), (0, 48)), Member("cpu", (1, 4), (1, 2), (48, 96))),
    ],
)
def test_members_that_do_not_share_a_stage(path: Path, members: tuple[Member, ...]) -> None:
    config = Config.from_gguf(GGUF(path))
    plan = Plan((Stage((0, 2), (WHOLE,)), Stage((2, 4), members), Stage((4, 6), (whole(config, "cpu"),))))
    with pytest.raises(UsageError, match="the plan") as error:
        plan.check(config)
    assert "\n" not in str(error.value)
    with pytest.raises(UsageError, match="the plan"):
        LLM(path, plan=plan)


@pytest.mark.parametrize("stages", [(), (Stage((0, 6), ()),)])
def test_plans_without_anything(path: Path, stages: tuple[Stage, ...]) -> None:
    with pytest.raises(UsageError, match="the plan"):
        LLM(path, plan=Plan(stages))


def test_members_that_share_a_stage(path: Path) -> None:
    config = Config.from_gguf(GGUF(path))
    halves = (Member("cpu", (0, 2), (0, 1), (0, 40)), Member("cpu:1", (2, 4), (1, 2), (40, 96)))
    Plan((Stage((0, 3), halves), Stage((3, 6), (whole(config, "cpu"),)))).check(config)
    idle = (whole(config, "cpu"), Member("cpu:1", (4, 4), (2, 2), (96, 96)))
    Plan((Stage((0, 3), idle), Stage((3, 6), (whole(config, "cpu"),)))).check(config)


def test_only_the_ends_of_a_plan_may_be_empty(path: Path) -> None:
    config = Config.from_gguf(GGUF(path))
    member = (whole(config, "cpu"),)
    Plan((Stage((0, 0), member), Stage((0, 6), member), Stage((6, 6), member))).check(config)
    with pytest.raises(UsageError, match="only an end"):
        Plan((Stage((0, 3), member), Stage((3, 3), member), Stage((3, 6), member))).check(config)
    without_output = Stage((6, 6), (WHOLE,))
    with pytest.raises(UsageError, match="output rows"):
        Plan((Stage((0, 6), member), without_output)).check(config)


def test_what_is_not_there_says_so(path: Path) -> None:
    for wrong in ("cuda:x", "rtx3090,gpu:1", "tpu"):
        with pytest.raises(UsageError, match="unknown device"):
            LLM(path, devices=wrong)
    with pytest.raises(UsageError, match="unknown option colour"):
        LLM(path, colour="red")


def test_a_device_has_one_share_of_a_stage(path: Path) -> None:
    a, b = Member("cpu", (0, 2), (0, 1), (0, 48), (0, 30)), Member("cpu", (2, 4), (1, 2), (48, 96), (30, 50))
    with pytest.raises(UsageError, match=r"the plan has 'cpu' twice in half layers \[0, 6\]"):
        LLM(path, plan=Plan((Stage((0, 6), (a, b)),)))


def test_a_stage_has_no_more_members_than_a_machine_has_devices(path: Path) -> None:
    config = Config.from_gguf(GGUF(path))
    more = [Member(f"cuda:{i}", (4, 4), (2, 2), (96, 96), (50, 50)) for i in range(255)]
    Plan((Stage((0, 6), (whole(config, "cpu"), *more)),)).check(config)
    with pytest.raises(UsageError, match=r"has 257 members in half layers \[0, 6\]: 256 at most"):
        Plan((Stage((0, 6), (whole(config, "cpu"), *more, more[0])),)).check(config)


def test_cuts_inside_a_block(tmp_path: Path) -> None:
    """Said before anything is loaded; a cut between blocks, or a share of all or nothing, is fine."""
    path = Tiny(width=128, heads=8, kv_heads=4, format=GGMLQuantizationType.Q8_0).write(tmp_path / "q8.gguf")

    def plan(kv_heads: int, ff: int) -> Plan:
        heads = 2 * kv_heads
        a = Member("cpu:0", (0, heads), (0, kv_heads), (0, ff), (0, 50))
        b = Member("cpu:1", (heads, 8), (kv_heads, 4), (ff, 96), (50, 50))
        return Plan((Stage((0, 4), (a, b)),))

    for kv_heads, ff in ((1, 32), (0, 96), (4, 0)):
        LLM(path, plan=plan(kv_heads, ff)).close()
    with pytest.raises(UsageError, match=r"cuts blk\.0\.ffn_down\.weight at column 40, .* 32 \(Q8_0\)"):
        LLM(path, plan=plan(1, 40))
    shape = Tiny(width=160, heads=10, kv_heads=10, format=GGMLQuantizationType.Q4_0)
    narrow = shape.write(tmp_path / "q4.gguf")
    a = Member("cpu:0", (0, 3), (0, 3), (0, 32), (0, 50))
    b = Member("cpu:1", (3, 10), (3, 10), (32, 96), (50, 50))
    with pytest.raises(UsageError, match=r"cuts blk\.0\.attn_output\.weight at column 48, .* 32 \(Q4_0\)"):
        LLM(narrow, plan=Plan((Stage((0, 4), (a, b)),)))
