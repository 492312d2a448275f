"""The forward pass against numpy float64, over everything that a model may have."""

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from ggrun import LLM, GgrunError
from ggrun.arch import Arch
from ggrun.gguf import GGUFError
from tests.engine.test_peer import distance, in_batches
from tests.reference import Reference
from tests.tiny import Tiny

YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 32}
MODELS = {
    "llama": Tiny(),
    "tied embeddings": Tiny(tied=True),
    "one key-value head": Tiny(kv_heads=1),
    "no groups": Tiny(kv_heads=4),
    "odd sizes": Tiny(width=60, heads=3, kv_heads=1, key_dim=14, value_dim=22, ff=70, vocab=37),
    "half of a head is rotated": Tiny(arch="qwen2", biases=True, extra={"rope.dimension_count": 8}),
    "llama 3 factors": Tiny(rope_factors=True, extra={"rope.freq_base": 500000.0}),
    "linear": Tiny(extra={"rope.scaling.type": "linear", "rope.scaling.factor": 2.5}),
    "yarn": Tiny(arch="qwen2", biases=True, width=128, extra=YARN),
    "yarn llama": Tiny(width=128, extra=YARN),
    "yarn with all its options": Tiny(
        width=128,
        extra=YARN
        | {
            "rope.scaling.yarn_ext_factor": 0.5,
            "rope.scaling.yarn_log_multiplier": 0.7,
            "rope.scaling.yarn_beta_fast": 1.5,
            "rope.scaling.yarn_beta_slow": 0.5,
            "rope.scaling.attn_factor": 1.25,
        },
    ),
    "yarn without its mix": Tiny(width=128, extra=YARN | {"rope.scaling.yarn_ext_factor": 0.0}),
    "attention scale": Tiny(extra={"attention.scale": 0.6}),
    "mistral3": Tiny(
        arch="mistral3", extra={"attention.temperature_scale": 0.1, "attention.temperature_length": 8}
    ),
    "qwen3": Tiny(arch="qwen3", head_norms=True, key_dim=32),
    "mixtral": Tiny(experts=4, experts_used=2),
    "qwen3moe": Tiny(arch="qwen3moe", head_norms=True, experts=7, experts_used=3),
    "one expert": Tiny(experts=3, experts_used=1),
    "half floats": Tiny(format=GGMLQuantizationType.F16),
    "bfloat16": Tiny(format=GGMLQuantizationType.BF16),
}


def tokens(model: Tiny, n: int) -> list[int]:
    return np.random.default_rng(5).integers(0, model.vocab, n).tolist()


@pytest.mark.parametrize("name", MODELS)
def test_against_float64(name: str, tmp_path: Path) -> None:
    path = MODELS[name].write(tmp_path / "model.gguf")
    ids = tokens(MODELS[name], 40)
    want = Reference(path).logits(np.array(ids))
    with LLM(path, cache_type_k="f32", cache_type_v="f32") as llm:
        for size in (1000, 7, 1):
            assert distance(in_batches(llm, ids, size), want) < 1e-11, size


@pytest.mark.parametrize(("kind", "bar"), [("f16", 1e-6), ("bf16", 1e-4), ("q8_0", 1e-3)])
@pytest.mark.parametrize("name", ["llama", "odd sizes"])
def test_cache_types(kind: str, bar: float, name: str, tmp_path: Path) -> None:
    path = MODELS[name].write(tmp_path / "model.gguf")
    ids = tokens(MODELS[name], 40)
    want = Reference(path).logits(np.array(ids))
    for k, v in ((kind, kind), (kind, "f32"), ("f32", kind)):
        with LLM(path, cache_type_k=k, cache_type_v=v) as llm:
            got = llm.logits(ids)
        assert 1e-14 < distance(got, want) < bar, (k, v)


def test_threads_do_not_change_a_bit(tmp_path: Path) -> None:
    path = Tiny(experts=4, experts_used=2).write(tmp_path / "model.gguf")
    ids = tokens(Tiny(), 50)
    answers = []
    for threads in (1, 2, 3, 5):
        with LLM(path, threads=threads) as llm:
            answers.append(llm.logits(ids).tobytes())
    assert len(set(answers)) == 1


def test_micro_batches_do_not_change_the_answer(tmp_path: Path) -> None:
    path = Tiny().write(tmp_path / "model.gguf")
    ids = tokens(Tiny(), 50)
    answers = []
    for n_ubatch in (1, 3, 50, 512):
        with LLM(path, n_ubatch=n_ubatch, cache_type_k="f32", cache_type_v="f32") as llm:
            answers.append(llm.logits(ids))
    for answer in answers[1:]:
        assert distance(answer, answers[0]) < 1e-11


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block_count": 3}, "blk.2.attn_norm.weight is missing"),
        ({"feed_forward_length": 97}, "has shape (64, 96), (64, 97) is needed"),
        ({"attention.head_count_kv": 3}, "4 heads cannot share 3"),
        ({"attention.head_count": 0}, "head_count is 0"),
        ({"rope.dimension_count": 5}, "rope.dimension_count is 5"),
        ({"rope.scaling.type": "magic"}, "'magic'"),
        ({"block_count": "two"}, "block_count"),
        ({"embedding_length": 1 << 31}, "embedding_length is 2147483648"),
    ],
)
def test_metadata_that_cannot_be(change: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(GgrunError, match=message.replace("(", r"\(").replace(")", r"\)")):
        LLM(Tiny(extra=change).write(tmp_path / "model.gguf"))


def test_experts_whose_weights_are_not_normalized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Tiny(experts=5, experts_used=2)
    path = model.write(tmp_path / "model.gguf")
    reference = Reference(path)
    reference.normalize_experts = False
    want = reference.logits(np.array(tokens(model, 20)))
    monkeypatch.setattr("ggrun.arch.llama.ARCH", Arch("llama", rope_neighbours=True, normalize_experts=False))
    with LLM(path, cache_type_k="f32", cache_type_v="f32") as llm:
        assert distance(llm.logits(tokens(model, 20)), want) < 1e-11


VECTOR = np.ones(16, np.float32)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Tiny(more={"blk.0.attn_sinks.weight": VECTOR}), "no use for blk.0.attn_sinks.weight in"),
        (Tiny(more={"blk.1.attn_k_norm.weight": VECTOR}), "no use for blk.1.attn_k_norm.weight"),
        (Tiny(more={"blk.0.attn_q_norm.weight": VECTOR}), "attn_k_norm.weight is missing"),
        (Tiny(more={"rope_factors_long.weight": VECTOR}), "no use for rope_factors_long.weight"),
        (Tiny(more={"blk.0.ffn_gate_shexp.weight": np.ones((96, 64), np.float32)}), "ffn_gate_shexp"),
        (Tiny(experts=2, experts_used=1, more={"blk.0.ffn_up.scale": VECTOR[:1]}), "ffn_up.scale in"),
        (Tiny(extra={"block_count": 1}), r"no use for blk\.1\.\S+, blk\.1\.\S+, blk\.1\.\S+ and 6 more"),
        (Tiny(more={"blk.0.rope_freqs.weight": VECTOR[:8]}), r"blk\.0\.rope_freqs"),
        (Tiny(rope_factors=True, more={"blk.0.rope_freqs.weight": VECTOR[:8]}), r"blk\.0\.rope_freqs"),
    ],
)
def test_tensors_that_would_be_left_out(model: Tiny, message: str, tmp_path: Path) -> None:
    with pytest.raises(GGUFError, match=message):
        LLM(model.write(tmp_path / "model.gguf"))


@pytest.mark.parametrize(
    "model",
    [
        Tiny(more={"blk.0.attn_q.input_scale": VECTOR[:1], "cls.output.weight": VECTOR}),
        Tiny(arch="qwen2", more={f"blk.0.ffn_{p}.scale": VECTOR[:1] for p in ("gate", "up", "down")}),
        Tiny(more=dict.fromkeys(("rope_freqs.weight", "blk.1.rope_freqs.weight"), 2 * VECTOR[:8])),
    ],
)
def test_tensors_that_change_nothing(model: Tiny, tmp_path: Path) -> None:
    path = model.write(tmp_path / "model.gguf")
    want = Reference(path).logits(np.arange(9))
    with LLM(path, cache_type_k="f32", cache_type_v="f32") as llm:
        assert distance(llm.logits(range(9)), want) < 1e-11


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("rope_freqs.weight", np.zeros(8)),
        ("rope_freqs.weight", np.full(8, 1e-45)),
        ("rope_freqs.weight", np.full(8, np.nan)),
        ("output_norm.weight", np.full(64, np.inf)),
        ("blk.0.attn_q.scale", np.full(1, np.inf)),
        ("blk.0.ffn_up.scale", np.full(1, np.inf)),
    ],
)
def test_vectors_that_are_no_numbers(name: str, values: np.ndarray, tmp_path: Path) -> None:
    more = {name: values.astype(np.float32), "blk.0.ffn_up.bias": np.zeros(96, np.float32)}
    with pytest.raises(GGUFError, match=f"{name} has .*no numbers"):
        LLM(Tiny(more=more).write(tmp_path / "model.gguf"))


def test_a_bias_that_its_scale_makes_infinite(tmp_path: Path) -> None:
    more = {"blk.0.ffn_up.bias": np.full(96, 1e30), "blk.0.ffn_up.scale": np.full(1, 1e30)}
    model = Tiny(more={name: values.astype(np.float32) for name, values in more.items()})
    with pytest.raises(GGUFError, match=r"ffn_up\.bias has values that are no numbers"):
        LLM(model.write(tmp_path / "model.gguf"))


def test_unknown_architecture_and_format(tmp_path: Path) -> None:
    with pytest.raises(GgrunError, match="unknown architecture 'mamba9'"):
        LLM(Tiny(arch="mamba9").write(tmp_path / "a.gguf"))
    with pytest.raises(GgrunError, match=r"architecture '../llama'"):
        LLM(Tiny(arch="../llama").write(tmp_path / "b.gguf"))


def test_experts_with_quantized_columns_of_several_superblocks(tmp_path: Path) -> None:
    """Their tokens are some of all columns, which lie side by side."""
    model = Tiny(width=512, ff=512, experts=4, experts_used=2, format=GGMLQuantizationType.Q8_0)
    path, tokens = model.write(tmp_path / "model.gguf"), np.arange(40)
    with LLM(path) as llm:
        assert distance(llm.logits(tokens.tolist()), Reference(path).logits(tokens)) < 0.01
