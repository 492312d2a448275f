"""Plans as data, and stages that hand the residual stream to each other."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

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


@pytest.mark.parametrize("cuts", [[0, 6], [0, 1, 6], [0, 2, 4, 6], [0, 3, 5, 6], [0, 1, 2, 3, 4, 5, 6]])
def test_stages_compute_what_one_does(path: Path, cuts: list[int]) -> None:
    member = whole(Config.from_gguf(GGUF(path)), "cpu")
    plan = Plan(tuple(Stage((a, b), (member,)) for a, b in pairwise(cuts)))
    tokens = list(range(1, 30))
    with LLM(path) as one, LLM(path, plan=plan, n_ubatch=8) as several:
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
    halves = (Member("cpu", (0, 2), (0, 1), (0, 40)), Member("cpu", (2, 4), (1, 2), (40, 96)))
    Plan((Stage((0, 3), halves), Stage((3, 6), (whole(config, "cpu"),)))).check(config)
    idle = (whole(config, "cpu"), Member("cpu", (4, 4), (2, 2), (96, 96)))
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


def test_row_split_and_other_devices_say_that_they_are_not_there(path: Path) -> None:
    a, b = Member("cpu", (0, 2), (0, 1), (0, 48), (0, 30)), Member("cpu", (2, 4), (1, 2), (48, 96), (30, 50))
    members = (a, b)
    with pytest.raises(UsageError, match="not built yet"):
        LLM(path, plan=Plan((Stage((0, 6), members),)))
    for wrong in ("cuda:0", "rtx3090,gpu:1", "tpu"):
        with pytest.raises(UsageError, match="unknown device"):
            LLM(path, devices=wrong)
    with pytest.raises(UsageError, match="unknown option colour"):
        LLM(path, colour="red")
