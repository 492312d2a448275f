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
    ["", "[]", "{}", '{"stages": 3}', '{"stages": [{"halves": [2, 1], "members": []}]}', '{"stages": [[]]}'],
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


def test_row_split_and_other_devices_say_that_they_are_not_there(path: Path) -> None:
    member = Member("cpu", (0, 4), (0, 2), (0, 96))
    with pytest.raises(UsageError, match="not built yet"):
        LLM(path, plan=Plan((Stage((0, 6), (member, member)),)))
    with pytest.raises(UsageError, match="not built yet"):
        LLM(path, split_mode="row")
    with pytest.raises(UsageError, match="unknown device 'cuda:0'"):
        LLM(path, devices="cuda:0")
