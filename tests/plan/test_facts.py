"""What models weigh and their KV cache takes, by their files and by hand; what the engine really takes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from ggrun import LLM
from ggrun.devices import best
from ggrun.devices.cpu import Cpu
from ggrun.devices.cuda import grids
from ggrun.gguf import GGUF, GGUFError, Outline
from ggrun.kernels import load_cpu
from ggrun.plan import single
from ggrun.plan.facts import ModelFacts, cache_row
from ggrun.plan.mixes import outline
from ggrun.plan.options import CACHE_TYPES
from ggrun.plan.usage import SLICE, TOP_K, Sizes, plan_use
from tests.tiny import Tiny

TINIES = [
    Tiny(layers=3, biases=True, head_norms=True, rope_factors=True, arch="qwen3"),
    Tiny(layers=2, tied=True),
    Tiny(layers=2, arch="qwen3moe", experts=8, experts_used=2, head_norms=True, ff=64),
    Tiny(layers=2, heads=6, kv_heads=3, key_dim=20, value_dim=12, vocab=3000),
]


def total(facts: ModelFacts) -> int:
    return sum(part.total for part in facts.parts) + facts.embedding.total + facts.output.total


@pytest.mark.parametrize("tiny", TINIES, ids=str)
def test_the_weights_add_up_to_the_file(tiny: Tiny, tmp_path: Path) -> None:
    path = tiny.write(tmp_path / "model.gguf")
    facts = ModelFacts.from_outline(Outline.read(path))
    assert total(facts) == sum(tensor.data.size for tensor in GGUF(path).tensors.values())
    uses = plan_use(facts, single(facts.config, "cpu"), Sizes(64), 0)
    assert uses["cpu"].weights == total(facts)


def test_a_header_is_enough(tmp_path: Path) -> None:
    path = TINIES[0].write(tmp_path / "model.gguf")
    whole = ModelFacts.from_outline(Outline.read(path))
    data = sum(tensor.nbytes for tensor in GGUF(path).tensors.values())
    path.write_bytes(path.read_bytes()[: path.stat().st_size - data])
    assert total(ModelFacts.from_outline(Outline.read(path))) == total(whole)
    with pytest.raises(GGUFError, match="truncated"):
        GGUF(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(GGUFError):
        Outline.read(path)


def test_70b_weighs_what_its_file_does() -> None:
    """Meta-Llama-3-70B-Instruct-Q4_K_M.gguf of Hugging Face has 42,520,395,584 bytes, some 8 MB of header."""
    facts = ModelFacts.from_outline(outline("llama-3-70b", "Q4_K_M"))
    assert 0 < 42_520_395_584 - total(facts) < 10e6


def test_the_cache_of_70b_at_8k_by_hand() -> None:
    facts = ModelFacts.from_outline(outline("llama-3-70b", "Q4_K_M"))
    plan = single(facts.config, "cpu")
    by_hand = 80 * 8192 * 8 * 128 * 2 * 2  # layers, positions, heads, values, keys and values, bytes of f16
    assert plan_use(facts, plan, Sizes(8192), 0)["cpu"].kv == by_hand
    assert plan_use(facts, plan, Sizes(8129), 0)["cpu"].kv == by_hand  # whole pages of 64
    small = plan_use(facts, plan, Sizes(8192, keys="q8_0", values="f32"), 0)["cpu"].kv
    assert small == by_hand // 4 * 34 // 32 + by_hand


def test_what_devices_say_is_the_same_here() -> None:
    assert (best.MOST_K, grids.SLICE) == (TOP_K, SLICE)
    for kind in CACHE_TYPES:
        for dim in (1, 20, 32, 64, 80, 128, 576):
            assert cache_row(kind, dim) == load_cpu(f"cache.{kind}").row_bytes(dim)


@pytest.mark.parametrize("n_ubatch", [1, 16, 512])
@pytest.mark.parametrize("tiny", TINIES, ids=str)
def test_a_run_takes_what_was_said(
    tiny: Tiny, n_ubatch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never more, and not much less: buffers of one size serve several times."""
    taken = 0
    real = Cpu.working_memory

    def counting(self: Cpu, nbytes: int) -> np.ndarray:
        nonlocal taken
        taken += nbytes
        return real(self, nbytes)

    monkeypatch.setattr(Cpu, "working_memory", counting)
    path = tiny.write(tmp_path / "model.gguf")
    with LLM(path, n_ctx=512, n_ubatch=n_ubatch, threads=1) as llm:
        facts = ModelFacts.from_outline(Outline.read(path))
        said = plan_use(facts, llm.plan, Sizes(512, n_ubatch), 0)["cpu"].working
        assert taken > 0
        assert taken <= said <= 2.5 * taken + 200_000


# ---------------------------------------------------------------- what a token reads


def facts_of(path: Path) -> ModelFacts:
    return ModelFacts.from_outline(Outline.read(path))


def test_what_a_token_reads_of_a_dense_model(tmp_path: Path) -> None:
    shape = {"layers": 1, "width": 64, "heads": 4, "kv_heads": 2, "ff": 96, "vocab": 50}
    layer = 2 * 64 * 64 + 2 * 32 * 64 + 3 * 96 * 64  # q and output; k and v; gate, up and down
    norms = 3 * 64
    output = 50 * 64
    untied = facts_of(Tiny(**shape).write(tmp_path / "untied.gguf"))
    assert untied.token_bytes == 4 * (layer + norms + output + 64)
    tied = facts_of(Tiny(tied=True, **shape).write(tmp_path / "tied.gguf"))
    assert tied.token_bytes == 4 * (layer + norms + output)
    quantized = facts_of(Tiny(format=GGMLQuantizationType.Q8_0, **shape).write(tmp_path / "q8_0.gguf"))
    assert quantized.token_bytes == (layer + output + 64) // 32 * 34 + 4 * norms
    assert untied.position_bytes("f32", "f16") == 1 * 2 * 32 * (4 + 2)  # layers, heads, values of each


def test_what_a_token_reads_of_experts(tmp_path: Path) -> None:
    shape = Tiny("qwen3moe", layers=1, experts=8, experts_used=3, ff=32, head_norms=True)
    shape.extra["expert_feed_forward_length"] = 32
    attention, router, expert = 2 * 64 * 64 + 2 * 32 * 64, 8 * 64, 3 * 32 * 64
    numbers = attention + router + 3 * expert + 50 * 64 + 64 + 3 * 64 + 2 * 16
    assert facts_of(shape.write(tmp_path / "moe.gguf")).token_bytes == 4 * numbers


def test_experts_of_a_model_that_has_none() -> None:
    """A file may have tensors that are none of its model's: they are refused where they would be loaded."""
    model = outline("tinyllama-1.1b", "Q4_K_M")
    before = ModelFacts.from_outline(model).token_bytes
    stray = replace(model.tensors["blk.0.ffn_up.weight"], name="blk.0.ffn_up_exps.weight")
    tensors = {**model.tensors, stray.name: stray}
    facts = ModelFacts.from_outline(Outline(model.path, model.metadata, tensors))
    assert facts.token_bytes == before + stray.nbytes
