"""Shapes of well-known models: their sizes, and the tensors that a file of them has.

The sizes are those of the models' public config.json.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a model."""

    name: str
    arch: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    ff: int  # of the feed-forward, or of one expert
    vocab: int
    context: int
    base: float  # of the rotary embedding
    eps: float
    tied: bool = False
    biases: bool = False  # on query, key and value
    head_norms: bool = False  # on query and key
    experts: int = 0
    experts_used: int = 0
    rope_factor: float = 1.0  # how far Llama 3's scheme stretches a context of 8192


def _llama(name: str, *sizes: Any, base: float, eps: float = 1e-5, **options: Any) -> Shape:
    values: Any = (name, "llama", *sizes, base, eps)
    return Shape(*values, **options)


def _qwen(name: str, arch: str, *sizes: Any, tied: bool = False, **options: Any) -> Shape:
    values: Any = (name, arch, *sizes, 1e6, 1e-6, tied, arch == "qwen2", arch != "qwen2")
    return Shape(*values, **options)


_MIXTRAL = {"experts": 8, "experts_used": 2}
_A3B: dict[str, Any] = {"experts": 128, "experts_used": 8}
_LLAMA_3_2 = {"base": 5e5, "tied": True, "rope_factor": 32.0}

# fmt: off
SHAPES = {
    shape.name: shape
    for shape in (  # layers, width, heads, kv heads, head dim, ff, vocabulary, context
        _llama("tinyllama-1.1b", 22, 2048, 32, 4, 64, 5632, 32000, 2048, base=1e4),
        _llama("llama-2-7b", 32, 4096, 32, 32, 128, 11008, 32000, 4096, base=1e4),
        _llama("llama-3-8b", 32, 4096, 32, 8, 128, 14336, 128256, 8192, base=5e5),
        _llama("llama-3-70b", 80, 8192, 64, 8, 128, 28672, 128256, 8192, base=5e5),
        _llama("llama-3.1-8b", 32, 4096, 32, 8, 128, 14336, 128256, 131072, base=5e5, rope_factor=8.0),
        _llama("llama-3.2-1b", 16, 2048, 32, 8, 64, 8192, 128256, 131072, **_LLAMA_3_2),
        _llama("llama-3.2-3b", 28, 3072, 24, 8, 128, 8192, 128256, 131072, **_LLAMA_3_2),
        _llama("mistral-7b", 32, 4096, 32, 8, 128, 14336, 32768, 32768, base=1e6),  # v0.3
        _llama("mixtral-8x7b", 32, 4096, 32, 8, 128, 14336, 32000, 32768, base=1e6, **_MIXTRAL),
        _qwen("qwen2.5-0.5b", "qwen2", 24, 896, 14, 2, 64, 4864, 151936, 32768, tied=True),
        _qwen("qwen2.5-7b", "qwen2", 28, 3584, 28, 4, 128, 18944, 152064, 32768),
        _qwen("qwen3-0.6b", "qwen3", 28, 1024, 16, 8, 128, 3072, 151936, 40960, tied=True),
        _qwen("qwen3-8b", "qwen3", 36, 4096, 32, 8, 128, 12288, 151936, 40960),
        _qwen("qwen3-30b-a3b", "qwen3moe", 48, 2048, 32, 4, 128, 768, 151936, 40960, **_A3B),
    )
}
"""Every shape that has a name."""
# fmt: on


@dataclass(frozen=True, slots=True)
class Slot:
    """A tensor of a model: its ggml shape, and its role, by which a mix chooses the format.

    What is always float32 has the role "ones", "noise" (a bias or a router) or "rope".
    """

    name: str
    shape: tuple[int, ...]
    role: str
    layer: int = 0


def slots(shape: Shape) -> list[Slot]:
    """All tensors of a model."""
    found = [Slot("token_embd.weight", (shape.width, shape.vocab), "embedding")]
    if not shape.tied:
        found.append(Slot("output.weight", (shape.width, shape.vocab), "output"))
    found.append(Slot("output_norm.weight", (shape.width,), "ones"))
    if shape.rope_factor != 1.0:
        found.append(Slot("rope_freqs.weight", (shape.head_dim // 2,), "rope"))
    for i in range(shape.layers):
        found += _attention(shape, i) + _feed_forward(shape, i)
    return found


def _attention(s: Shape, i: int) -> list[Slot]:
    rows = {"q": s.heads * s.head_dim, "k": s.kv_heads * s.head_dim, "v": s.kv_heads * s.head_dim}
    found = [Slot(f"blk.{i}.attn_norm.weight", (s.width,), "ones")]
    found += [Slot(f"blk.{i}.attn_{part}.weight", (s.width, n), part, i) for part, n in rows.items()]
    if s.biases:
        found += [Slot(f"blk.{i}.attn_{part}.bias", (n,), "noise") for part, n in rows.items()]
    if s.head_norms:
        found += [Slot(f"blk.{i}.attn_{part}_norm.weight", (s.head_dim,), "ones") for part in "qk"]
    return [*found, Slot(f"blk.{i}.attn_output.weight", (rows["q"], s.width), "attn_output", i)]


def _feed_forward(s: Shape, i: int) -> list[Slot]:
    sizes = {"gate": (s.width, s.ff), "up": (s.width, s.ff), "down": (s.ff, s.width)}
    norm = Slot(f"blk.{i}.ffn_norm.weight", (s.width,), "ones")
    if not s.experts:
        return [norm, *(Slot(f"blk.{i}.ffn_{part}.weight", size, part, i) for part, size in sizes.items())]
    router = Slot(f"blk.{i}.ffn_gate_inp.weight", (s.width, s.experts), "noise")
    many = [
        Slot(f"blk.{i}.ffn_{part}_exps.weight", (*size, s.experts), part, i) for part, size in sizes.items()
    ]
    return [norm, router, *many]


def hyperparameters(shape: Shape) -> dict[str, Any]:
    """The key-value pairs that say the sizes of a model."""
    own: dict[str, Any] = {
        "block_count": shape.layers,
        "context_length": shape.context,
        "embedding_length": shape.width,
        "feed_forward_length": shape.ff,
        "attention.head_count": shape.heads,
        "attention.head_count_kv": shape.kv_heads,
        "attention.key_length": shape.head_dim,
        "attention.value_length": shape.head_dim,
        "attention.layer_norm_rms_epsilon": shape.eps,
        "rope.dimension_count": shape.head_dim,
        "rope.freq_base": shape.base,
        "vocab_size": shape.vocab,
    }
    if shape.experts:
        own |= {"expert_count": shape.experts, "expert_used_count": shape.experts_used}
    if shape.arch == "qwen3moe":
        own["expert_feed_forward_length"] = shape.ff
    pairs = {f"{shape.arch}.{name}": value for name, value in own.items()}
    return {"general.architecture": shape.arch, **pairs}
