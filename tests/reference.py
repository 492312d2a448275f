"""The forward pass in numpy float64 over gguf-py's dequantized weights: slow, short, independent of ggrun."""

from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize

Array = np.ndarray


class Reference:
    """A llama-like model (llama, mistral3, qwen2, qwen3, and with experts) as float64 arrays."""

    normalize_experts = True

    def __init__(self, path: Path):
        reader = GGUFReader(path)
        self.kv = {name: field.contents() for name, field in reader.fields.items()}
        self.arch: str = self.kv["general.architecture"]
        self.weights = {
            t.name: dequantize(t.data, t.tensor_type).astype(np.float64).reshape(t.shape[::-1])
            for t in reader.tensors
        }
        self.heads = self.hparam("attention.head_count")
        self.kv_heads = self.hparam("attention.head_count_kv", self.heads)
        self.head_dim = self.hparam("attention.key_length", self.hparam("embedding_length") // self.heads)
        self.eps = self.hparam("attention.layer_norm_rms_epsilon")

    def hparam(self, name: str, default: Any = None) -> Any:
        return self.kv.get(f"{self.arch}.{name}", default)

    def norm(self, x: Array, name: str) -> Array:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + self.eps) * self.weights[f"{name}.weight"]

    def linear(self, x: Array, name: str, scaled: bool = True) -> Array:
        scale = self.weights.get(f"{name}.scale", 1.0) if scaled else 1.0
        y, bias = x @ self.weights[f"{name}.weight"].T, self.weights.get(f"{name}.bias", 0.0)
        return (y + bias) * scale if ".ffn_" in name else y * scale + bias

    def rope(self, x: Array) -> Array:
        n = self.hparam("rope.dimension_count", self.head_dim)
        freqs = self.hparam("rope.freq_base", 10000.0) ** (-np.arange(0, n, 2) / n)
        freqs = freqs / self.weights.get("rope_freqs.weight", 1.0)
        magnitude = self.hparam("rope.scaling.attn_factor", 1.0)
        if self.hparam("rope.scaling.type") == "yarn":
            freqs, temperature = self.yarn(freqs, n)
            magnitude = magnitude * temperature
        else:
            freqs = freqs / (self.hparam("rope.scaling.factor") or 1.0)
        angle = np.arange(len(x))[:, None, None] * freqs
        pairs = self.arch in ("llama", "mistral3")
        a, b = (x[..., 0:n:2], x[..., 1:n:2]) if pairs else (x[..., : n // 2], x[..., n // 2 : n])
        lo, hi = a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle)
        turned = np.stack([lo, hi], -1).reshape(*lo.shape[:-1], n) if pairs else np.concatenate([lo, hi], -1)
        return np.concatenate([turned * magnitude, x[..., n:]], -1)

    def yarn(self, freqs: Array, n: int) -> tuple[Array, float]:
        """Peng et al. 2023: pairs that turn often keep their frequency, slow ones are stretched."""
        factor = self.hparam("rope.scaling.factor")
        original = self.hparam("rope.scaling.original_context_length")
        base = self.hparam("rope.freq_base", 10000.0)
        ext = self.hparam("rope.scaling.yarn_ext_factor", 1.0)

        def pair(rotations: float) -> float:
            return n * np.log(original / (rotations * 2 * np.pi)) / (2 * np.log(base))

        low = max(0, np.floor(pair(self.hparam("rope.scaling.yarn_beta_fast", 32.0))))
        high = min(n - 1, np.ceil(pair(self.hparam("rope.scaling.yarn_beta_slow", 1.0))))
        out = []
        for i, f in enumerate(freqs):
            kept = (1 - min(1.0, max(0.0, (i - low) / max(0.001, high - low)))) * ext
            out.append(f * kept + f / factor * (1 - kept))
        if not ext:
            return np.array(out), 1.0
        trained = self.hparam("rope.scaling.yarn_log_multiplier", 0.0)
        return np.array(out), (0.1 * np.log(factor) + 1) / (0.1 * trained * np.log(factor) + 1)

    def attention(self, x: Array, blk: str) -> Array:
        n = len(x)
        parts = (("q", self.heads), ("k", self.kv_heads), ("v", self.kv_heads))
        q, k, v = (self.linear(x, f"{blk}.attn_{p}").reshape(n, heads, -1) for p, heads in parts)
        if f"{blk}.attn_q_norm.weight" in self.weights:
            q, k = self.norm(q, f"{blk}.attn_q_norm"), self.norm(k, f"{blk}.attn_k_norm")
        q, k = self.rope(q), self.rope(k)
        slope = self.hparam("attention.temperature_scale", 0.0)
        period = self.hparam("attention.temperature_length")
        if slope:
            q = q * (1 + slope * np.log(1 + np.arange(n) // period))[:, None, None]
        k, v = (np.repeat(a, self.heads // self.kv_heads, 1) for a in (k, v))
        scale = self.hparam("attention.scale") or self.head_dim**-0.5
        scores = np.einsum("qhd,khd->hqk", q, k) * scale
        scores = np.where(np.tril(np.ones((n, n), bool)), scores, -np.inf)
        p = np.exp(scores - scores.max(-1, keepdims=True))
        out = np.einsum("hqk,khd->qhd", p / p.sum(-1, keepdims=True), v)
        return self.linear(out.reshape(n, -1), f"{blk}.attn_output")

    def ffn(self, x: Array, blk: str) -> Array:
        scaled = self.arch != "qwen2"  # as llama.cpp has it
        gate, up = self.linear(x, f"{blk}.ffn_gate", scaled), self.linear(x, f"{blk}.ffn_up", scaled)
        return self.linear(gate / (1 + np.exp(-gate)) * up, f"{blk}.ffn_down", scaled)

    def experts(self, x: Array, blk: str) -> Array:
        logits = x @ self.weights[f"{blk}.ffn_gate_inp.weight"].T
        probs = np.exp(logits - logits.max(-1, keepdims=True))
        probs /= probs.sum(-1, keepdims=True)
        out = np.zeros_like(x)
        for t, row in enumerate(x):
            chosen = np.argsort(-probs[t], kind="stable")[: self.hparam("expert_used_count")]
            for e in chosen:
                gate = self.expert(row, f"{blk}.ffn_gate_exps", e)
                up = self.expert(row, f"{blk}.ffn_up_exps", e)
                y = self.expert(gate / (1 + np.exp(-gate)) * up, f"{blk}.ffn_down_exps", e)
                out[t] += y * probs[t, e] / (probs[t, chosen].sum() if self.normalize_experts else 1.0)
        return out

    def expert(self, x: Array, name: str, e: int) -> Array:
        scale = self.weights[f"{name}.scale"][e] if f"{name}.scale" in self.weights else 1.0
        return self.weights[f"{name}.weight"][e] @ x * scale

    def logits(self, tokens: Array) -> Array:
        """[n] token ids -> [n, vocab] float64, all in one batch from position 0."""
        x = self.weights["token_embd.weight"][tokens]
        for i in range(self.hparam("block_count")):
            blk = f"blk.{i}"
            x = x + self.attention(self.norm(x, f"{blk}.attn_norm"), blk)
            ffn = self.experts if f"{blk}.ffn_gate_inp.weight" in self.weights else self.ffn
            x = x + ffn(self.norm(x, f"{blk}.ffn_norm"), blk)
        head = "output" if "output.weight" in self.weights else "token_embd"
        return self.linear(self.norm(x, "output_norm"), head)
