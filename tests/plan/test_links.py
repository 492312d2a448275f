"""Devices of other machines in plans: what messages to them cost, and what cannot be."""

from dataclasses import replace
from pathlib import Path

import pytest

from ggrun.errors import UsageError
from ggrun.gguf import Outline
from ggrun.plan import Plan, Stage, host_of, whole
from ggrun.plan.cost import predict
from ggrun.plan.facts import ModelFacts
from ggrun.plan.hardware import DeviceInfo, short_name
from ggrun.plan.options import PlanOptions
from ggrun.plan.planner import make_plan
from ggrun.plan.usage import Sizes, plan_use
from tests.tiny import Tiny

GB = 1 << 30
CPU = DeviceInfo("cpu", 8 * GB, 8 * GB, 20e9, 200e9, 10e9)
FAR = DeviceInfo("far:50052/cpu:0", 8 * GB, 8 * GB, 20e9, 200e9, 10e9, network=100e6, latency=1e-3)
FARTHER = replace(FAR, name="farther:50052/cpu:0", network=50e6, latency=3e-3)
TWIN = replace(FAR, name="far:50052/cpu:1")


@pytest.fixture
def facts(tmp_path: Path) -> ModelFacts:
    return ModelFacts.from_outline(Outline.read(Tiny(layers=4, context=4096).write(tmp_path / "model.gguf")))


def token(facts: ModelFacts, *names: str) -> float:
    """Predicted seconds of a token with a stage of equal size for each device."""
    halves, c = 8 // len(names), facts.config
    stages = [Stage((halves * i, halves * (i + 1)), (whole(c, name),)) for i, name in enumerate(names)]
    devices = {device.name: device for device in (CPU, FAR, FARTHER, TWIN)}
    return predict(facts, Plan(tuple(stages)), Sizes(512), devices).token / 1e12


def test_what_a_way_costs(facts: ModelFacts) -> None:
    width, vocab = 4 * facts.config.width, 4 * facts.config.vocab
    here = token(facts, "cpu", "cpu")
    out = 1e-3 + width / 100e6
    far = token(facts, "cpu", FAR.name) - here
    assert far == pytest.approx(out + 1e-3 + vocab / 100e6, rel=0.05)
    back = token(facts, FAR.name, "cpu") - here
    assert back == pytest.approx(out, rel=0.05), "the logits are at home"
    inside = token(facts, FAR.name, TWIN.name) - here
    assert inside == pytest.approx(1e-3 + vocab / 100e6, rel=0.05), "only the logits travel"
    between = token(facts, FAR.name, FARTHER.name) - here
    assert between == pytest.approx(4e-3 + width / 50e6 + 3e-3 + vocab / 50e6, rel=0.05)


def test_a_far_device_is_used_when_there_is_no_room_here(facts: ModelFacts) -> None:
    options = PlanOptions(n_ctx=512, fit_margin=0)
    alone = make_plan(facts, [FAR, CPU], options)
    assert set(alone.uses) == {"cpu"}
    tight = make_plan(facts, [FAR, replace(CPU, free=alone.uses["cpu"].total - 1)], options)
    assert tight.fits
    assert set(tight.uses) == {"cpu", FAR.name}


@pytest.mark.parametrize("mode", ["row", "tensor"])
def test_rows_over_machines_are_refused_by_name(facts: ModelFacts, mode: str) -> None:
    card = replace(CPU, name="cuda:0")
    with pytest.raises(UsageError, match=rf"^-sm {mode} .*{FAR.name} and cuda:0 are on several"):
        make_plan(facts, [FAR, card, CPU], PlanOptions(split_mode=mode))
    inside = make_plan(facts, [FAR, TWIN, CPU], PlanOptions(split_mode=mode, n_gpu_layers="all"))
    assert {m.device for m in inside.plan.stages[-1].members} <= {FAR.name, TWIN.name}


def test_the_cache_of_a_far_device_cannot_be_here(facts: ModelFacts) -> None:
    with pytest.raises(UsageError, match=f"^-nkvo .*{FAR.name} is on another"):
        make_plan(facts, [FAR, CPU], PlanOptions(kv_offload=False))


def test_a_far_card_takes_as_much_memory_as_one_here(facts: ModelFacts) -> None:
    def used(name: str) -> int:
        plan = Plan((Stage((0, 8), (whole(facts.config, name),)),))
        return plan_use(facts, plan, Sizes(512), 2)[name].total

    assert used("far:1/cuda:0") == used("cuda:0") > used("cpu") == used("far:1/cpu")


def test_names() -> None:
    assert [host_of(name) for name in ("cpu", "cpu:0:2GB", "a:1/cuda:0", "[::1]:5/cpu")] == [
        "", "", "a:1", "[::1]:5",
    ]  # fmt: skip
    assert short_name("a:1/cpu:0:2GB") == "a:1/cpu:0"
    assert short_name("cpu:0:2GB") == "cpu:0"
