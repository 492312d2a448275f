"""The shortest path against all layouts that there are."""

from dataclasses import replace
from itertools import combinations_with_replacement
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ggrun.plan import Plan, Stage, whole
from ggrun.plan.cost import Place, predict
from ggrun.plan.facts import ModelFacts
from ggrun.plan.options import PlanOptions
from ggrun.plan.planner import make_plan
from ggrun.plan.solve import Problem, solve
from ggrun.plan.tables import Sums
from ggrun.plan.usage import Sizes, plan_use
from tests.plan.models import Model, card, models

SOME = settings(max_examples=60, suppress_health_check=list(HealthCheck))


def plan_of(facts: ModelFacts, names: list[str], embedding: str) -> Plan:
    """Items one behind the other on devices by these names."""
    stages, last = [(0, 0, embedding)], facts.items - 1
    for item, name in enumerate(names):
        begin, end = item, min(item + 1, last)
        stages = (
            [*stages[:-1], (stages[-1][0], end, name)]
            if stages[-1][2] == name
            else [*stages, (begin, end, name)]
        )
    plan = Plan(tuple(Stage((a, b), (whole(facts.config, name),)) for a, b, name in stages))
    plan.check(facts.config)
    return plan


@SOME
@given(models(), st.data())
def test_no_other_layout_is_faster(model: Model, data: Any) -> None:
    """Of all ways to cut the items into runs for three devices, counted by what the plan itself says.

    The embedding is on the host, as the output may be, or has its place on one of the three, or goes with the
    first item.
    """
    facts = model.facts
    n, sizes = facts.items, Sizes(128, n_ubatch=data.draw(st.sampled_from([16, 128])))
    speeds = st.sampled_from([1e10, 2e10, 9e10])
    total = sum(part.total for part in facts.parts) + facts.output.total + (1 << 22)
    room = st.integers(total // 8, 2 * total)
    devices = [card(f"cuda:{i}", data.draw(room), data.draw(speeds)) for i in range(3)]
    everyone = {device.name: device for device in (*devices, card("cpu", 1 << 40, 1e10))}
    limits = {name: device.free for name, device in everyone.items()}
    sums = Sums(facts, sizes, peers=3)
    tables = {
        name: sums.table(Place((device,), (whole(facts.config, name),))) for name, device in everyone.items()
    }
    embedding = data.draw(st.sampled_from(["cpu", "cuda:0", "cuda:1", None]))
    output = data.draw(st.sampled_from([None, "cpu", "cuda:0", "cuda:2"]))

    free = n if output is None else n - 1
    plans = []
    for cuts in combinations_with_replacement(range(free + 1), 2):
        counts = (cuts[0], cuts[1] - cuts[0], free - cuts[1])
        names = [device.name for device, count in zip(devices, counts, strict=True) for _ in range(count)]
        names += [output] if output else []
        plan = plan_of(facts, names, embedding or names[0])
        plans.append((plan, plan_use(facts, plan, sizes, 3)))
    if data.draw(st.booleans()):  # so that one of them fits to the byte
        limits |= {name: use.total for name, use in data.draw(st.sampled_from(plans))[1].items()}
    fitting = (plan for plan, uses in plans if all(use.total <= limits[name] for name, use in uses.items()))
    best = min((predict(facts, plan, sizes, everyone).pace for plan in fitting), default=None)

    problem = Problem(
        sums, [tables[device.name] for device in devices], limits,
        {n - 1: tables[output]} if output else {}, tables[embedding] if embedding else None,
    )  # fmt: skip
    found = solve(problem)
    assert (found.pace if found else None) == best
    if found:
        assert solve(problem, below=found.pace) is None


@SOME
@given(models(), st.data())
def test_what_one_device_holds_it_may_hold(model: Model, data: Any) -> None:
    """To the byte, wherever flags say that the parts of a tied embedding are."""
    facts = replace(model, shape=replace(model.shape, tied=True)).facts
    names = data.draw(st.sampled_from([["cuda:0"], ["cuda:0", "cpu"], ["cuda:0", "cuda:1", "cpu"], ["cpu"]]))
    pattern, on = data.draw(st.sampled_from(["token_embd", "output_norm", "blk", r"blk\.0\.ffn"])), names[0]
    both = (("token_embd", on), ("output_norm", on), ("blk", on))
    options = PlanOptions(
        n_ctx=64, n_ubatch=16, overrides=data.draw(st.sampled_from([((pattern, on),), both])),
        n_gpu_layers="all" if "cpu" in names and on != "cpu" else "auto",
    )  # fmt: skip
    holds = {name: card(name, 1 << 40) for name in names}
    largest = make_plan(facts, list(holds.values()), options)
    for name, use in largest.uses.items():
        holds[name] = card(name, use.total)
    assert make_plan(facts, list(holds.values()), options).fits
