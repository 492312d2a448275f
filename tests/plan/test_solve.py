"""The shortest path against all layouts that there are."""

from itertools import combinations_with_replacement
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ggrun.plan import Plan, Stage, whole
from ggrun.plan.cost import Place, predict
from ggrun.plan.solve import Problem, solve
from ggrun.plan.tables import Sums
from ggrun.plan.usage import Sizes, plan_use
from tests.plan.models import Model, card, models

SOME = settings(max_examples=60, suppress_health_check=list(HealthCheck))


@SOME
@given(models(), st.data())
def test_no_other_layout_is_faster(model: Model, data: Any) -> None:
    """Of all ways to cut the items into runs for three devices, counted by what the plan itself says."""
    facts = model.facts
    n, sizes = facts.items, Sizes(128, n_ubatch=data.draw(st.sampled_from([16, 128])))
    speeds = st.sampled_from([1e10, 2e10, 9e10])
    total = sum(part.total for part in facts.parts) + facts.output.total + (1 << 22)
    room = st.integers(total // 8, 2 * total)
    devices = [card(f"cuda:{i}", data.draw(room), data.draw(speeds)) for i in range(3)]
    host = card("cpu", 1 << 40, 1e10)
    everyone = {device.name: device for device in (*devices, host)}
    sums = Sums(facts, sizes, peers=3)
    tables = [sums.table(Place((d,), (whole(facts.config, d.name),))) for d in devices]
    embedding = sums.table(Place((host,), (whole(facts.config, "cpu"),)))
    limits = {name: device.free for name, device in everyone.items()}

    best = None
    for cuts in combinations_with_replacement(range(n + 1), 2):
        stages = [Stage((0, 0), (whole(facts.config, "cpu"),))]
        for device, begin, end in zip(devices, (0, *cuts), (*cuts, n), strict=True):
            if begin < end:
                halves = min(begin, n - 1), min(end, n - 1)
                stages.append(Stage(halves, (whole(facts.config, device.name),)))
        plan = Plan(tuple(stages))
        plan.check(facts.config)
        uses = plan_use(facts, plan, sizes, 3)
        if all(use.total <= limits[name] for name, use in uses.items()):
            pace = predict(facts, plan, sizes, everyone).pace
            best = pace if best is None else min(best, pace)

    found = solve(Problem(sums, tables, limits, embedding=embedding))
    assert (found.pace if found else None) == best
    if found:
        assert solve(Problem(sums, tables, limits, embedding=embedding), below=found.pace) is None
