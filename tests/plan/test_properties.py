"""What holds for every plan, over thousands of random models, devices and flags."""

import os
import re
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ggrun.errors import UsageError
from ggrun.plan import Plan
from ggrun.plan.hardware import DeviceInfo
from ggrun.plan.options import PlanOptions
from ggrun.plan.planned import Planned
from ggrun.plan.planner import largest_context, make_plan
from ggrun.plan.report import flags, require_fit
from tests.plan.models import Model, machines, models, with_more

EXAMPLES = int(os.environ.get("GGRUN_EXAMPLES", "200"))
MANY = settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))


@st.composite
def cases(draw: Any) -> tuple[Model, list[DeviceInfo], PlanOptions]:
    model = draw(models())
    total = sum(tensor.nbytes for tensor in model.outline.tensors.values())
    devices = draw(machines(total))
    cards = [device.name for device in devices if not device.host]
    host = len(cards) < len(devices)
    layers = model.shape.layers
    fields: dict[str, Any] = {
        "split_mode": draw(st.sampled_from(["layer", "layer", "row", "tensor", "none"]))
    }

    def maybe(name: str, values: Any, wanted: bool = True) -> None:
        if wanted and draw(st.integers(0, 3)) == 0:
            fields[name] = draw(values)

    maybe("n_gpu_layers", st.sampled_from(["all", *range(layers + 3)]), host)
    maybe("order", st.lists(st.sampled_from(cards or [""]), min_size=1, unique=True), len(cards) > 1)
    used = len(fields.get("order", cards))
    ratios = st.lists(st.integers(0, 5), min_size=used, max_size=used).filter(any)
    maybe("tensor_split", ratios, bool(cards))
    maybe("main_gpu", st.integers(0, max(0, used - 1)), bool(cards))
    maybe("n_cpu_ffn", st.integers(0, layers + 1), host)
    maybe("n_cpu_moe", st.integers(0, layers + 1), host and model.shape.experts > 0)
    maybe("cpu_moe", st.just(True), host and model.shape.experts > 0)
    maybe("kv_offload", st.just(False), host)
    names = [device.name for device in devices]
    pattern = st.sampled_from(
        [r"blk\.0\.ffn_", r"blk\.[01]\.", "attn_q", "output.weight|output_norm", "token_embd"]
    )
    maybe("overrides", st.lists(st.tuples(pattern, st.sampled_from(names)), min_size=1, max_size=2))
    maybe("fit_margin", st.lists(st.integers(0, 64), min_size=1, max_size=len(names)))
    fields["n_ctx"] = draw(st.sampled_from([0, 64, 500, 5000]))
    fields["n_ubatch"] = draw(st.sampled_from([1, 32, 512]))
    fields["cache_type_k"] = draw(st.sampled_from(["f16", "q8_0", "f32"]))
    fields["fit_ctx"] = draw(st.sampled_from([64, 4096]))
    return model, devices, PlanOptions(**fields)


def counted(planned: Planned, model: Model) -> dict[str, int]:
    """The bytes of weights and KV cache on each device, from the names and shapes of the tensors alone."""
    plan, shape, n_ctx = planned.plan, model.shape, planned.sizes.n_ctx
    found: dict[str, int] = {}

    def add(device: str, nbytes: Fraction | int) -> None:
        assert nbytes == int(nbytes), "a share of whole blocks is a whole number of bytes"
        found[device] = found.get(device, 0) + int(nbytes)

    rows = {"f16": lambda d: 2 * d, "q8_0": lambda d: 34 * d // 32, "f32": lambda d: 4 * d}
    dim = -(-shape.head_dim // 32) * 32
    cell = rows[planned.sizes.keys](dim) + rows[planned.sizes.values](dim)
    tensors = model.outline.tensors
    for stage in plan.stages:
        for m in stage.members:
            for half in range(*stage.halves):
                kind = "ffn" if half % 2 else "attn"
                for name, tensor in tensors.items():
                    if name.startswith(f"blk.{half // 2}.{kind}_"):
                        add(m.device, tensor.nbytes * part(name, m, shape))
                if kind == "attn":
                    heads = m.kv_heads[1] - m.kv_heads[0]
                    add("cpu" if plan.kv_on_host else m.device, -(-n_ctx // 64) * 64 * heads * cell)
    for m in plan.stages[0].members:
        add(m.device, tensors["token_embd.weight"].nbytes)
    for m in plan.stages[-1].members:
        share = Fraction(m.vocab[1] - m.vocab[0], shape.vocab)
        add(m.device, tensors["output_norm.weight"].nbytes)
        if not shape.tied:
            add(m.device, tensors["output.weight"].nbytes * share)
        elif m.device not in [first.device for first in plan.stages[0].members]:
            add(m.device, tensors["token_embd.weight"].nbytes * share)
    return found


def part(name: str, m: Any, shape: Any) -> Fraction:
    def of(share: tuple[int, int], whole: int) -> Fraction:
        return Fraction(share[1] - share[0], whole)

    if re.search(r"attn_(q|output)\.(weight)$|attn_q\.bias$", name):
        return of(m.heads, shape.heads)
    if re.search(r"attn_[kv]\.(weight|bias)$", name):
        return of(m.kv_heads, shape.kv_heads)
    return of(m.ff, shape.ff) if re.search(r"ffn_(gate|up|down)(_exps)?\.weight$", name) else Fraction(1)


@MANY
@given(cases())
def test_never_over_a_limit_and_everything_placed_once(case: Any) -> None:
    model, devices, options = case
    planned = make_plan(model.facts, devices, options)
    planned.plan.check(planned.facts.config)  # every half layer, head, column and row once and in order
    assert Plan.from_json(planned.plan.to_json()) == planned.plan
    own = counted(planned, model)
    if planned.fits:
        limits = {device.name: device.free for device in devices}
        assert all(nbytes <= limits[name] for name, nbytes in own.items())
        require_fit(planned)
        assert largest_context(planned) >= planned.sizes.n_ctx
    for name, nbytes in own.items():
        use = planned.uses[name]
        assert use.weights + use.kv == nbytes


@MANY
@given(cases())
def test_what_the_user_set_is_kept(case: Any) -> None:
    model, devices, options = case
    planned = make_plan(model.facts, devices, options)
    plan, layers = planned.plan, model.shape.layers
    owners: list[tuple[str, ...]] = []
    for stage in plan.stages:
        owners += [tuple(m.device for m in stage.members)] * (stage.halves[1] - stage.halves[0])
    owners.append(tuple(m.device for m in plan.stages[-1].members))
    cards = [device.name for device in devices if not device.host]
    matched = {
        i: device for i in range(2 * layers + 1) for regex, device in reversed(options.overrides)
        if any(re.search(regex, name) for name in planned.facts.part(i).names)
    }  # fmt: skip
    if options.n_ctx:
        assert planned.sizes.n_ctx == options.n_ctx
    assert plan.kv_on_host == (not options.kv_offload)
    on_cpu = set(range(1, 2 * min(layers, max(options.n_cpu_ffn or 0, options.n_cpu_moe or 0)), 2))
    on_cpu |= set(range(1, 2 * layers, 2)) if options.cpu_moe else set()
    for item, names in enumerate(owners):
        if item in matched:
            assert names == (matched[item],)
        elif item in on_cpu or not cards:
            assert names == ("cpu",)
        elif options.n_gpu_layers not in ("auto", "all"):
            on_card = item >= 2 * (layers + 1 - int(options.n_gpu_layers)) and options.n_gpu_layers
            assert (names != ("cpu",)) == bool(on_card)
        elif options.n_gpu_layers == "all":
            assert names != ("cpu",)
    free = [owners[i] for i in range(len(owners)) if i not in matched and owners[i] != ("cpu",)]
    order = list(options.order or cards)
    if options.split_mode == "none" and cards:
        assert set(free) <= {(order[options.main_gpu],)}
    elif options.split_mode == "layer":
        positions = [order.index(name) for (name,) in free]
        assert positions == sorted(positions)
        if options.tensor_split and len(order) > 1 and not matched and not on_cpu and free:
            first = next(i for i, names in enumerate(owners) if names != ("cpu",))
            units, total = 2 * layers + 2 - first, sum(options.tensor_split)
            for position, ratio in enumerate(options.tensor_split):
                held = sum(
                    2 if i == 2 * layers else 1 for i, n in enumerate(owners) if n == (order[position],)
                )
                assert abs(held - units * ratio / total) <= 2  # half a layer at each end, or the output whole
    elif len(cards) > 1:
        assert len(set(free)) <= 1


@MANY
@given(cases(), st.data())
def test_more_memory_never_gives_a_slower_plan(case: Any, data: Any) -> None:
    """At the same context. A plan is as slow as a token written and a token read take together.

    What cards compute for the CPU is left out: there is room for that where a layer is too large for it.
    """
    model, devices, options = case
    options = replace(options, n_ctx=options.n_ctx or 128, op_offload=False)
    before = make_plan(model.facts, devices, options)
    more = [with_more(device, data.draw(st.integers(0, 1 << 26))) for device in devices]
    after = make_plan(model.facts, more, options)
    if before.fits:
        assert after.fits
        # Flags that keep feed-forwards on the CPU have cards used alike, for a hundredth of the time.
        flags_spread = options.cpu_moe or options.n_cpu_moe or options.n_cpu_ffn
        slack = before.speed.pace // 100 + 1 if flags_spread else 0
        assert after.speed.pace <= before.speed.pace + slack


@MANY
@given(cases())
def test_the_flags_give_the_same_plan(case: Any) -> None:
    from ggrun.cli.placement import taken
    from ggrun.cli.plan import plan as command

    model, devices, options = case
    planned = make_plan(model.facts, devices, options)
    if not planned.fits:
        return
    with command.make_context("plan", ["x", *flags(planned)]) as context:
        given_again = dict(context.params)
    for name in ("model", "as_json", "threads", "n_batch"):
        given_again.pop(name)
    placement = taken(given_again)
    for name in ("hardware", "plan", "p2p", "rpc"):
        placement.pop(name)
    again = make_plan(model.facts, devices, PlanOptions(**given_again, **placement))
    assert again.plan == planned.plan


@pytest.mark.parametrize("field", [{"n_gpu_layers": 1}, {"n_cpu_ffn": 1}, {"kv_offload": False}])
def test_without_a_cpu_flags_that_need_one_say_so(field: dict[str, Any]) -> None:
    from ggrun.plan.facts import ModelFacts
    from ggrun.plan.hardware import parse_devices
    from ggrun.plan.mixes import outline

    facts = ModelFacts.from_outline(outline("tinyllama-1.1b", "Q4_K_M"))
    with pytest.raises(UsageError, match="add cpu"):
        make_plan(facts, parse_devices("2x rtx3090"), PlanOptions(**field))
