"""Plans of well-known models on well-known machines, and what is refused."""

import re
from dataclasses import replace

import pytest

from ggrun.errors import UsageError
from ggrun.plan import Member, Plan, Stage, single, whole
from ggrun.plan.facts import ModelFacts
from ggrun.plan.hardware import parse_devices
from ggrun.plan.mixes import outline
from ggrun.plan.options import PlanOptions, parse_layers, parse_margin, parse_overrides, parse_ratios
from ggrun.plan.planned import Planned
from ggrun.plan.planner import largest_context, make_plan
from ggrun.plan.report import DoesNotFit, bottleneck, flags, notes, remedy, require_fit, with_plan
from ggrun.plan.rows import cut, shared

CPU = "cpu:64GB@50GB/s"
SMALL = "cpu:9GB@50GB/s"


def plan(model: str, devices: str, **fields: object) -> Planned:
    shape, _, mix = model.partition(":")
    facts = ModelFacts.from_outline(outline(shape, mix or "Q4_K_M"))
    return make_plan(facts, parse_devices(devices), PlanOptions(**fields))  # type: ignore[arg-type]


def where(planned: Planned) -> list[tuple[tuple[str, ...], tuple[int, int]]]:
    return [(tuple(m.device for m in stage.members), stage.halves) for stage in planned.plan.stages]


def test_70b_at_8k_fits_two_cards_of_24_gb() -> None:
    planned = plan("llama-3-70b", "2x rtx3090", n_ctx=8192)
    assert planned.fits
    assert sum(use.weights for use in planned.uses.values()) == 42_512_531_456
    assert where(planned) == [(("cuda:0",), (0, 80)), (("cuda:1",), (80, 160))]


def test_the_embedding_stays_on_the_cpu() -> None:
    planned = plan("llama-3-70b", f"2x rtx3090, {CPU}", n_ctx=8192)
    assert where(planned)[0] == (("cpu",), (0, 0))
    assert planned.uses["cpu"].weights == 128256 * 8192 // 256 * 144  # Q4_K


def test_the_context_shrinks_to_what_fits_and_no_further() -> None:
    full = plan("llama-3.1-8b", f"rtx3090,{CPU}")
    assert full.sizes.n_ctx == 131072 - 131072 % 64 or full.sizes.n_ctx < 131072
    small = plan("llama-3.1-8b", f"rtx3070,{CPU}")
    assert 4096 < small.sizes.n_ctx < full.sizes.n_ctx
    assert set(small.uses) == {"cuda:0", "cpu"}
    assert where(small) == [(("cpu",), (0, 0)), (("cuda:0",), (0, 64))]
    least = plan("llama-3.1-8b", f"rtx2060:4GB,{CPU}")  # layers go to the CPU rather than below 4096
    assert least.sizes.n_ctx == 4096
    assert least.uses["cpu"].weights > 1 << 30


def test_what_does_not_fit_overflows_to_the_cpu() -> None:
    planned = plan("llama-3-70b", f"rtx4090,{CPU}", n_ctx=4096, op_offload=False)
    assert planned.fits
    assert 15e9 < planned.uses["cpu"].weights < 25e9
    assert planned.uses["cuda:0"].total > 0.97 * planned.limits["cuda:0"]


def test_of_experts_only_those_go_to_the_cpu() -> None:
    """Few of them are read for a token, so there is nothing that costs less to leave there."""
    planned = plan("qwen3-30b-a3b", f"rtx3060,{CPU}", n_ctx=4096)
    on_cpu = [halves for names, halves in where(planned) if names == ("cpu",) and halves[0] < halves[1]]
    assert on_cpu == [(i, i + 1) for i in range(1, 2 * len(on_cpu), 2)]
    assert len(on_cpu) > 10


def test_cards_are_used_alike_by_what_ncmoe_leaves() -> None:
    planned = plan("qwen3-30b-a3b", f"2x rtx3060,{CPU}", n_cpu_moe=24)
    a, b = (planned.uses[name].total for name in ("cuda:0", "cuda:1"))
    assert abs(a - b) < 0.1 * max(a, b)
    expert = {stage.halves[0] // 2 for stage in planned.plan.stages if stage.members[0].device == "cpu"}
    assert expert == set(range(24))


def test_a_slow_card_is_left_out_and_named() -> None:
    planned = plan("llama-3-8b", f"rtx4090, gtx1060, {CPU}", n_ctx=8192)
    assert set(planned.uses) == {"cpu", "cuda:0"}
    assert list(notes(planned)) == ["cuda:1 is left out: with it, tokens would take longer"]
    needed = plan("mixtral-8x7b", f"rtx4090, gtx1060, {CPU}", n_ctx=4096)
    assert set(needed.uses) == {"cpu", "cuda:0", "cuda:1"}
    assert list(notes(needed)) == []


def test_a_faster_card_has_more() -> None:
    row = plan("mixtral-8x7b", "rtx4090, rtx4080", split_mode="row", n_ctx=4096)
    big, small = row.plan.stages[0].members
    assert 1.2 < (big.ff[1] - big.ff[0]) / (small.ff[1] - small.ff[0]) < 1.8  # 1008 : 717 GB/s
    assert (big.ff[1] % 256, small.ff) == (0, (big.ff[1], 14336))


def test_row_is_tensor() -> None:
    assert plan("llama-3-8b", "2x rtx3090", split_mode="row").plan == plan(
        "llama-3-8b", "2x rtx3090", split_mode="tensor"
    ).plan  # fmt: skip


# ---------------------------------------------------------------- llama.cpp's meanings


@pytest.mark.parametrize(
    ("ngl", "want"),
    [
        (0, [(("cpu",), (0, 64))]),
        (1, [(("cpu",), (0, 64)), (("cuda:0",), (64, 64))]),
        (2, [(("cpu",), (0, 62)), (("cuda:0",), (62, 64))]),
        (33, [(("cpu",), (0, 0)), (("cuda:0",), (0, 64))]),
        (99, [(("cpu",), (0, 0)), (("cuda:0",), (0, 64))]),
        ("all", [(("cpu",), (0, 0)), (("cuda:0",), (0, 64))]),
    ],
)
def test_the_last_layers_go_to_cards_and_the_output_is_one_more(ngl: int | str, want: object) -> None:
    assert where(plan("llama-3-8b", f"rtx3090,{CPU}", n_gpu_layers=ngl, n_ctx=4096)) == want


def test_ratios_are_of_layers() -> None:
    planned = plan("llama-3-8b", "2x rtx3090", tensor_split=(2, 1), n_ctx=4096)  # of 33 layers
    assert where(planned) == [(("cuda:0",), (0, 44)), (("cuda:1",), (44, 64))]
    none = plan("llama-3-8b", "2x rtx3090", tensor_split=(0, 1), n_ctx=4096)
    assert where(none) == [(("cuda:1",), (0, 64))]
    assert list(notes(none)) == ["cuda:0 is left out by -ts"]


def test_one_device_of_several() -> None:
    planned = plan("llama-3-8b", "3x rtx3090", split_mode="none", main_gpu=1, n_ctx=4096)
    assert where(planned) == [(("cuda:1",), (0, 64))]
    assert list(notes(planned)) == ["cuda:0 is left out by -sm none", "cuda:2 is left out by -sm none"]


def test_devices_in_the_order_of_the_user() -> None:
    planned = plan("llama-3-70b", "2x rtx3090", order=("CUDA1", "cuda:0"), n_ctx=4096)
    assert [names for names, _ in where(planned)] == [("cuda:1",), ("cuda:0",)]
    alone = plan("llama-3-8b", f"2x rtx3090,{CPU}", order=("none",), n_ctx=4096)
    assert where(alone) == [(("cpu",), (0, 64))]


def test_a_card_that_is_named_is_used_however_slow_it_is() -> None:
    """Where it has room for all: what does not fit is the planner's to lay out."""
    slow = f"card:24GB@5GB/s,{CPU}"
    assert where(plan("llama-3-8b", slow, n_ctx=4096)) == [(("cpu",), (0, 64))]
    named = plan("llama-3-8b", slow, n_ctx=4096, order=("cuda:0",))
    assert where(named) == [(("cpu",), (0, 0)), (("cuda:0",), (0, 64))]
    large = plan("llama-3-70b", slow, n_ctx=4096, order=("cuda:0",))
    assert where(large) == [(("cpu",), (0, 160))]
    none = plan("llama-3-8b", slow, n_ctx=4096, order=("cuda:0",), n_gpu_layers=0)
    assert where(none) == [(("cpu",), (0, 64))]


def test_overrides_move_half_layers() -> None:
    planned = plan(
        "llama-3-8b", f"2x rtx3090,{CPU}", n_ctx=4096,
        overrides=(("blk.3.ffn_down", "CPU"), (r"blk\.3\.", "CUDA1"), ("output.weight", "cpu")),
    )  # fmt: skip
    owners = {half: names for names, (begin, end) in where(planned) for half in range(begin, end)}
    assert (owners[6], owners[7]) == (("cuda:1",), ("cpu",))
    assert where(planned)[-1][0] == ("cpu",)


def test_keys_and_values_on_the_host() -> None:
    planned = plan("llama-3-8b", f"rtx3090,{CPU}", kv_offload=False, n_ctx=8192)
    assert planned.plan.kv_on_host
    assert (planned.uses["cuda:0"].kv, planned.uses["cpu"].kv) == (0, 1 << 30)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"tensor_split": (1, 2, 3)}, "-ts gives 3 numbers for 2 cards"),
        ({"tensor_split": (0, 0)}, "not all of them 0"),
        ({"tensor_split": (1, float("nan"))}, "1e-6 to 1e12"),
        ({"order": ("cuda:7",)}, "unknown device 'cuda:7'"),
        ({"order": ("cuda:0", "cuda:0")}, "twice"),
        ({"split_mode": "diagonal"}, "split mode 'diagonal' is unknown"),
        ({"overrides": (("nothing_has_this", "cpu"),)}, "no tensor of the model"),
        ({"overrides": (("[", "cpu"),)}, "not a regular expression"),
        ({"overrides": (("attn", "cuda:9"),)}, "unknown device 'cuda:9'"),
        ({"overrides": (("attn", "cpu"), ("attn_q", "cuda:9"))}, "unknown device 'cuda:9'"),
        ({"overrides": (("attn",),)}, "a regular expression and a device"),
        ({"overrides": "attn=cpu"}, "overrides is 'attn=cpu': it must be a list"),
        ({"tensor_split": "3,1"}, "tensor_split is '3,1': it must be a list of numbers"),
        ({"n_ctx": "512"}, "n_ctx is '512': it must be a whole number"),
        ({"n_cpu_ffn": 1.5}, "n_cpu_ffn is 1.5: it must be a whole number"),
        ({"fit_margin": "1024"}, "fit_margin is '1024': it must be a whole number, or a list of them"),
        ({"fit_margin": []}, "fit_margin"),
        ({"fit_margin": [1, 2.5]}, "fit_margin"),
        ({"fit_margin": [1, -2]}, "0 or more"),
        ({"fit_margin": [1, 2, 3, 4]}, "-fitt gives 4 numbers for 3 devices"),
        ({"kv_offload": "no"}, "kv_offload is 'no': it must be True or False"),
        ({"split_mode": None}, "split_mode is None: it must be text"),
        ({"split_mode": "none", "main_gpu": 2}, "-mg 2"),
        ({"main_gpu": 2}, "-mg 2"),
        ({"n_cpu_moe": 3}, "no experts"),
        ({"n_gpu_layers": "some"}, "a number, auto or all"),
        ({"n_gpu_layers": -3}, "0 or more"),
        ({"n_ctx": -1}, "0 or more"),
        ({"n_ctx": 1 << 31}, "no context is larger"),
        ({"cache_type_v": "q3"}, "cache type 'q3' is unknown"),
    ],
)
def test_flags_that_make_no_sense(fields: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words) as error:
        plan("llama-3-8b", f"2x rtx3090,{CPU}", **fields)
    assert "\n" not in str(error.value)


def test_texts_of_flags() -> None:
    assert (parse_ratios("3,1"), parse_ratios("3/1/0.5")) == ((3, 1), (3, 1, 0.5))
    texts = ("7", "auto", "all", "-1", "-2")
    assert [*map(parse_layers, texts)] == [7, "auto", "all", "auto", "all"]
    assert parse_overrides("a=CPU,b{1,2}=c=cuda:0") == (("a", "CPU"), ("b{1,2}=c", "cuda:0"))
    for parse, text in (
        (parse_ratios, "3;1"),
        (parse_layers, "x"),
        (parse_overrides, "a"),
        (parse_overrides, "=b"),
        (parse_overrides, "a="),
    ):
        with pytest.raises(UsageError):
            parse(text)


# ---------------------------------------------------------------- what does not fit


@pytest.mark.parametrize(
    ("model", "devices", "fields", "flag"),
    [
        ("llama-3-70b", f"rtx4090,{CPU}", {"n_gpu_layers": "all"}, "-ngl auto"),
        ("llama-3-70b", f"rtx4090,rtx3090,{CPU}", {"split_mode": "none", "n_gpu_layers": 81}, "-ngl auto"),
        ("llama-3-70b", "rtx4090", {}, "cpu:64GB"),
        ("llama-3-70b", "2x rtx3090", {"tensor_split": (1, 9), "n_ctx": 4096}, "no -ts"),
        ("llama-3-70b", "2x rtx3090", {"n_ctx": 4096, "split_mode": "none"}, "-sm layer"),
        ("llama-3-70b", "rtx4090,cpu:8GB@50GB/s", {}, "smaller quantization"),
        ("llama-3-70b", "2x rtx3090,cpu:8GB@50GB/s", {"n_cpu_ffn": 80, "n_ctx": 4096}, "-ncffn"),
        ("llama-3-70b", "2x rtx3090", {"order": ("cuda:0",), "n_ctx": 4096}, "no -dev"),
    ],
)
def test_the_message_names_the_flag_that_helps(
    model: str, devices: str, fields: dict[str, object], flag: str
) -> None:
    planned = plan(model, devices, **fields)
    assert not planned.fits
    with pytest.raises(DoesNotFit, match=re.escape(flag)) as error:
        require_fit(planned)
    assert error.value.exit_status == 1
    assert "\n" not in str(error.value)
    assert remedy(planned) in str(error.value)


@pytest.mark.parametrize("n_ctx", [131072, 30000])
def test_the_context_that_the_message_names_fits_and_no_more_does(n_ctx: int) -> None:
    said = remedy(plan("llama-3.1-8b", "rtx3070", n_ctx=n_ctx))
    assert (match := re.fullmatch(r"give -c (\d+)", said))
    assert plan("llama-3.1-8b", "rtx3070", n_ctx=int(match[1])).fits
    assert not plan("llama-3.1-8b", "rtx3070", n_ctx=int(match[1]) + 64).fits


def test_without_fitting_nothing_is_adjusted() -> None:
    planned = plan("llama-3.1-8b", f"rtx3070,{CPU}", fit=False)
    assert planned.sizes.n_ctx == 131072
    assert where(planned) == [(("cpu",), (0, 0)), (("cuda:0",), (0, 64))]
    assert not planned.fits


# ---------------------------------------------------------------- rows


def test_cuts_lie_between_granules() -> None:
    assert cut(100, 10, (1, 1)) == [(0, 50), (50, 100)]
    assert cut(105, 10, (2, 1)) == [(0, 70), (70, 105)]  # the odd end is the last one's
    assert cut(8, 1, (3, 1)) == [(0, 6), (6, 8)]
    assert cut(256, 256, (1, 3)) == [(0, 0), (0, 256)]  # nothing to cut: one has all
    assert cut(200, 256, (3, 1, 1)) == [(0, 200), (200, 200), (200, 200)]
    assert cut(10, 1, (0, 1, 0)) == [(0, 0), (0, 10), (10, 10)]


def test_what_cannot_be_cut_is_one_members_and_said() -> None:
    facts = ModelFacts.from_outline(outline("qwen2.5-0.5b", "pure:Q8_0"))
    assert (facts.head_granule, facts.ff_granule) == (1, 32)
    a, b = shared(facts, ("x", "y"), (1, 1))
    assert a.ff == (0, 2432)
    assert (a.kv_heads, b.kv_heads, b.heads) == ((0, 1), (1, 2), (7, 14))
    narrow = replace(facts, ff_granule=4864)
    a, b = shared(narrow, ("x", "y"), (1, 3))
    assert (a.ff, b.ff) == ((0, 0), (0, 4864))
    planned = make_plan(
        narrow, parse_devices("2x rtx3090"), PlanOptions(split_mode="row", tensor_split=(1, 3))
    )
    planned.plan.check(facts.config)
    assert any("the feed-forward (4864 columns" in note for note in notes(planned))


# ---------------------------------------------------------------- plans of users


def test_a_plan_of_the_user() -> None:
    planned = plan("llama-3-8b", f"2x rtx3090,{CPU}")
    c = planned.facts.config
    own = Plan((Stage((0, 10), (whole(c, "cpu"),)), Stage((10, 64), (whole(c, "cuda:1"),))))
    other = with_plan(planned, own)
    assert other.plan == own
    assert other.sizes.n_ctx == 8192
    assert set(other.uses) == {"cpu", "cuda:1"}


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ([(0, 62)], "half layers end at 62, the model has 64"),
        ([(0, 40), (42, 64)], "cannot follow 40"),
        ([(0, 40), (38, 64)], "cannot follow 40"),
        ([(0, 64), (64, 80)], "the model has 64"),
    ],
)
def test_plans_with_layers_missing_or_twice(stages: list[tuple[int, int]], words: str) -> None:
    planned = plan("llama-3-8b", "2x rtx3090")
    member = whole(planned.facts.config, "cuda:0")
    with pytest.raises(UsageError, match=words):
        with_plan(planned, Plan(tuple(Stage(halves, (member,)) for halves in stages)))


def test_plans_for_another_model_or_machine() -> None:
    planned = plan("llama-3-8b", "rtx3090")
    with pytest.raises(UsageError, match="the model has"):
        with_plan(planned, plan("llama-3-70b", "2x rtx3090").plan)
    with pytest.raises(UsageError, match=r"'cuda:1'.* is not there"):
        with_plan(planned, single(planned.facts.config, "cuda:1"))
    wrong = Member("cuda:0", (0, 32), (0, 8), (0, 14336), (0, 32000))
    with pytest.raises(UsageError, match="output rows"):
        with_plan(planned, Plan((Stage((0, 64), (wrong,)),)))


def test_flags_in_short() -> None:
    planned = plan("llama-3-70b", f"2x rtx3090,{CPU}", n_ctx=8192)
    assert " ".join(flags(planned)) == "-c 8192 -ngl 81 -ts 40,41"


def test_the_bottleneck() -> None:
    assert bottleneck(plan("llama-3-70b", f"rtx4090,{CPU}", n_ctx=4096)).startswith("cpu, 9")
    small = bottleneck(plan("qwen3-0.6b", "rtx4090", n_ctx=4096))
    assert small == "cuda:0, 100% of a token's time: mostly what layers do beside their matrices"


def test_notes_on_what_flags_do() -> None:
    planned = plan("llama-3-8b", f"2x rtx3090,{CPU}", overrides=(("ffn", "cuda:1"), ("ffn_up", "cpu")))
    assert "-ot ffn_up changes nothing: those before it match all that it does" in list(notes(planned))
    planned = plan("llama-3-8b", f"rtx3090,{CPU}", overrides=((".", "cpu"),))
    assert "cuda:0 is left out: flags give all layers to other devices" in list(notes(planned))
    planned = plan("llama-3-8b", f"rtx3090,{CPU}", n_gpu_layers=0)
    assert "cuda:0 is left out by -ngl 0" in list(notes(planned))


def test_ratios_of_rows_can_be_read() -> None:
    found = flags(plan("llama-3-70b", "2x rtx3090", split_mode="row", n_ctx=4096))
    assert found[found.index("-ts") + 1] == "1,1"


@pytest.mark.parametrize(
    ("margin", "want"),
    [
        (512, [512, 512, 512]),
        ([512], [512, 512, 512]),
        ((1, 2, 3), [1, 2, 3]),
        ([0, 3000], [0, 3000, 1024]),
    ],
)
def test_each_device_keeps_its_margin(margin: object, want: list[int]) -> None:
    planned = plan("llama-3-8b", f"2x rtx3090, {CPU}", n_ctx=512, fit_margin=margin)
    kept = [device.free - planned.limits[device.name] for device in planned.devices]
    assert kept == [mib << 20 for mib in want]
    given = " ".join(flags(planned)).partition("-fitt ")[2].partition(" ")[0]
    assert PlanOptions(fit_margin=parse_margin(given)).fit_margin == planned.options.fit_margin


@pytest.mark.parametrize(("margins", "used"), [([0, 23_000], "cuda:0"), ([23_000, 0], "cuda:1")])
def test_a_card_that_must_stay_free_is_not_used(margins: list[int], used: str) -> None:
    planned = plan("llama-3-8b:Q8_0", "2x rtx3090", n_ctx=512, fit_margin=margins)
    assert planned.fits
    assert set(planned.uses) == {used}


def test_the_largest_context_is_that_of_any_layout() -> None:
    planned = plan("llama-3-8b", f"2x rtx3060,{SMALL}", n_ctx=4096)
    assert largest_context(planned) > planned.context_as_laid_out >= 4096
    assert plan("llama-3-8b", f"2x rtx3060,{SMALL}", n_ctx=largest_context(planned)).fits
    assert not plan("llama-3-8b", f"2x rtx3060,{SMALL}", n_ctx=largest_context(planned) + 64).fits


def test_a_full_context_takes_longer() -> None:
    speed = plan("llama-3-8b", "rtx3090", n_ctx=8192).speed
    cells = 8192 * 128 * 1024  # bytes: 128 KiB a position
    assert 0.5 < (speed.last - speed.token) / 1e12 / (cells / 936e9) < 1.5
