"""What models weigh and their KV cache takes, by their files and by hand; what the engine really takes."""

from pathlib import Path

import numpy as np
import pytest

from ggrun import LLM
from ggrun.devices import best
from ggrun.devices.cpu import Cpu
from ggrun.devices.cuda import grids
from ggrun.engine import cache, engine
from ggrun.gguf import GGUF, GGUFError, Outline
from ggrun.kernels import load_cpu
from ggrun.plan import single
from ggrun.plan.facts import PAGE, ModelFacts, cache_row
from ggrun.plan.mixes import outline
from ggrun.plan.usage import LOGITS_BYTES, SLICE, TOP_K, Sizes, plan_use
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


def test_what_the_engine_knows_too_is_the_same_here() -> None:
    assert cache.PAGE == PAGE
    assert engine._LOGITS_BYTES == LOGITS_BYTES
    assert (best.MOST_K, grids.SLICE) == (TOP_K, SLICE)
    for kind in engine.CACHE_KINDS:
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
