"""Tiny random models, written by gguf-py: any shape, any architecture that ggrun runs, float32 weights."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, quants


@dataclass
class Tiny:
    """The shape of a model; what is None is left out of the file."""

    arch: str = "llama"
    layers: int = 2
    width: int = 64
    heads: int = 4
    kv_heads: int = 2
    key_dim: int | None = None
    value_dim: int | None = None
    ff: int = 96
    vocab: int = 50
    context: int = 64
    experts: int = 0
    experts_used: int = 0
    tied: bool = False
    biases: bool = False
    head_norms: bool = False
    rope_factors: bool = False
    extra: dict[str, Any] = field(default_factory=dict)  # metadata: name after "<arch>." -> value
    more: dict[str, np.ndarray] = field(default_factory=dict)  # tensors, added or in place of others
    format: GGMLQuantizationType = GGMLQuantizationType.F32
    seed: int = 0

    def tensors(self) -> dict[str, np.ndarray]:
        """All weights, float32."""
        rng = np.random.default_rng(self.seed)
        kd, vd = self.key_dim or self.width // self.heads, self.value_dim or self.width // self.heads
        shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (self.vocab, self.width)}
        if not self.tied:
            shapes["output.weight"] = (self.vocab, self.width)
        for i in range(self.layers):
            blk = f"blk.{i}"
            shapes |= {
                f"{blk}.attn_q.weight": (self.heads * kd, self.width),
                f"{blk}.attn_k.weight": (self.kv_heads * kd, self.width),
                f"{blk}.attn_v.weight": (self.kv_heads * vd, self.width),
                f"{blk}.attn_output.weight": (self.width, self.heads * vd),
            }
            many: tuple[int, ...] = (self.experts,) if self.experts else ()
            suffix = "_exps" if self.experts else ""
            for part in ("gate", "up"):
                shapes[f"{blk}.ffn_{part}{suffix}.weight"] = (*many, self.ff, self.width)
            shapes[f"{blk}.ffn_down{suffix}.weight"] = (*many, self.width, self.ff)
            if self.experts:
                shapes[f"{blk}.ffn_gate_inp.weight"] = (self.experts, self.width)
        weights = {n: rng.standard_normal(s).astype(np.float32) * s[-1] ** -0.5 for n, s in shapes.items()}
        return weights | self._vectors(rng, kd, vd)

    def _vectors(self, rng: np.random.Generator, kd: int, vd: int) -> dict[str, np.ndarray]:
        sizes = {"output_norm.weight": self.width}
        for i in range(self.layers):
            sizes |= {f"blk.{i}.attn_norm.weight": self.width, f"blk.{i}.ffn_norm.weight": self.width}
            if self.head_norms:
                sizes |= {f"blk.{i}.attn_q_norm.weight": kd, f"blk.{i}.attn_k_norm.weight": kd}
            if self.biases:
                sizes |= {f"blk.{i}.attn_q.bias": self.heads * kd, f"blk.{i}.attn_k.bias": self.kv_heads * kd}
                sizes |= {f"blk.{i}.attn_v.bias": self.kv_heads * vd}
        vectors = {n: (1 + 0.2 * rng.standard_normal(s)).astype(np.float32) for n, s in sizes.items()}
        if self.rope_factors:
            vectors["rope_freqs.weight"] = rng.uniform(1, 8, kd // 2).astype(np.float32)
        return vectors

    def metadata(self) -> dict[str, Any]:
        """Key-value pairs, without the architecture."""
        values = {
            "block_count": self.layers,
            "context_length": self.context,
            "embedding_length": self.width,
            "feed_forward_length": self.ff,
            "attention.head_count": self.heads,
            "attention.head_count_kv": self.kv_heads,
            "attention.layer_norm_rms_epsilon": 1e-5,
            "attention.key_length": self.key_dim,
            "attention.value_length": self.value_dim,
            "expert_count": self.experts or None,
            "expert_used_count": self.experts_used or None,
        } | self.extra
        return {f"{self.arch}.{name}": value for name, value in values.items() if value is not None}

    def write(self, path: Path) -> Path:
        """Write the file."""
        writer = GGUFWriter(path, self.arch)
        for key, value in self.metadata().items():
            _adder(writer, value)(key, value)
        for name, values in (self.tensors() | self.more).items():
            kind = self.format if values.ndim > 1 else GGMLQuantizationType.F32
            writer.add_tensor(name, quants.quantize(values, kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path


def _adder(writer: GGUFWriter, value: Any) -> Callable[[str, Any], None]:
    if isinstance(value, int) and value < 0:
        return writer.add_int32
    kinds = {
        str: writer.add_string,
        float: writer.add_float32,
        int: writer.add_uint32,
        list: writer.add_array,
    }
    return kinds[type(value)]
