"""The forward pass, top to bottom: what a layer computes, recorded on a device."""

from dataclasses import dataclass
from typing import Any

from ggrun.arch.config import Config
from ggrun.devices.base import Buffer, Cells, Recorder
from ggrun.engine.weights import Weights
from ggrun.plan import Member, Range


@dataclass(frozen=True)
class LayerCells:
    """The KV cache of one layer."""

    keys: Cells
    values: Cells


class Forward:
    """Records one member's share of layers. What each half layer computes is to be added to x, the residual
    stream; of several members, the sum of what they compute."""

    def __init__(self, ops: Recorder, config: Config, weights: Weights, member: Member) -> None:
        self.ops, self.config, self.weights, self.member = ops, config, weights, member
        self._tables: tuple[Any, Any] | None = None

    def embed(self) -> Buffer:
        """Tokens to the residual stream."""
        return self.ops.embed(self.weights.matrix("token_embd.weight", self.config.width, self.config.vocab))

    def half(self, index: int, x: Buffer, cells: LayerCells | None) -> Buffer | None:
        """Half layer 2 i: the attention of layer i (with its cells); 2 i + 1: its feed-forward.

        None where the member's share is empty.
        """
        blk, m = f"blk.{index // 2}", self.member
        begin, end = m.ff if index % 2 else m.heads
        if begin == end:
            return None
        if cells is not None:
            return self._attention(self._norm(x, f"{blk}.attn_norm"), blk, cells)
        if f"{blk}.ffn_gate_inp.weight" in self.weights:
            return self._experts(self._norm(x, f"{blk}.ffn_norm"), blk)
        return self._feed_forward(self._norm(x, f"{blk}.ffn_norm"), blk)

    def head(self, x: Buffer) -> Buffer:
        """The logits of the tokens that want them. Without an output matrix the embedding serves (tied)."""
        x = self._norm(self.ops.pick(x), "output_norm")
        name = "output" if "output.weight" in self.weights else "token_embd"
        return self._linear(x, name, self.config.vocab, cut=self.member.vocab)

    # ---------------------------------------------------------------- the two halves

    def _attention(self, x: Buffer, blk: str, cells: LayerCells) -> Buffer:
        c, m = self.config, self.member
        heads, kv_heads = m.heads[1] - m.heads[0], m.kv_heads[1] - m.kv_heads[0]
        q = self._linear(x, f"{blk}.attn_q", c.heads * c.key_dim, cut=_times(m.heads, c.key_dim))
        k = self._linear(x, f"{blk}.attn_k", c.kv_heads * c.key_dim, cut=_times(m.kv_heads, c.key_dim))
        v = self._linear(x, f"{blk}.attn_v", c.kv_heads * c.value_dim, cut=_times(m.kv_heads, c.value_dim))
        if f"{blk}.attn_q_norm.weight" in self.weights:
            q = self._norm(q, f"{blk}.attn_q_norm", groups=heads)
            k = self._norm(k, f"{blk}.attn_k_norm", groups=kv_heads)
        of_queries, of_keys = self._rope_tables()
        self.ops.rope(q, of_queries, heads, c.arch.rope_neighbours)
        self.ops.rope(k, of_keys, kv_heads, c.arch.rope_neighbours)
        self.ops.store(k, cells.keys)
        self.ops.store(v, cells.values)
        y = self.ops.attend(q, cells.keys, cells.values, heads, c.attention_scale)
        width = c.heads * c.value_dim
        return self._linear(y, f"{blk}.attn_output", c.width, width, cut_columns=_times(m.heads, c.value_dim))

    def _feed_forward(self, x: Buffer, blk: str) -> Buffer:
        ff, share = self.config.ff, self.member.ff
        gate = self._linear(x, f"{blk}.ffn_gate", ff, cut=share, ffn=True)
        up = self._linear(x, f"{blk}.ffn_up", ff, cut=share, ffn=True)
        y = self.ops.swiglu(gate, up)
        return self._linear(y, f"{blk}.ffn_down", self.config.width, ff, cut_columns=share, ffn=True)

    def _experts(self, x: Buffer, blk: str) -> Buffer:
        c, share = self.config, self.member.ff
        logits = self._linear(x, f"{blk}.ffn_gate_inp", c.experts)
        routing = self.ops.route(logits, c.experts_used, c.arch.normalize_experts)
        x = self.ops.spread(x, routing)

        def product(x: Buffer, name: str, rows: int, columns: int, **cuts: Range) -> Buffer:
            w = self.weights.matrix(f"{blk}.{name}.weight", columns, rows, experts=c.experts, **cuts)
            scale = f"{blk}.{name}.scale"
            scales = self.weights.vector(scale, c.experts) if scale in self.weights else None
            return self.ops.experts(x, w, routing, scales)

        gate = product(x, "ffn_gate_exps", c.ff, c.width, cut=share)
        up = product(x, "ffn_up_exps", c.ff, c.width, cut=share)
        y = product(self.ops.swiglu(gate, up), "ffn_down_exps", c.width, c.ff, cut_columns=share)
        return self.ops.combine(y, routing)

    # ---------------------------------------------------------------- what they are made of

    def _norm(self, x: Buffer, name: str, groups: int = 1) -> Buffer:
        weight = self.weights.vector(f"{name}.weight", x.width // groups)
        return self.ops.norm(x, weight, self.config.eps, groups)

    def _linear(
        self,
        x: Buffer,
        name: str,
        rows: int,
        columns: int | None = None,
        cut: Range | None = None,
        cut_columns: Range | None = None,
        ffn: bool = False,
    ) -> Buffer:
        """x . weight^T * scale + bias, of which the last two may be missing; `ffn`: (... + bias) * scale."""
        w = self.weights.matrix(f"{name}.weight", columns or self.config.width, rows, cut, cut_columns)
        scale = self.weights.optional(f"{name}.scale", 1) if self.config.arch.ffn_scale or not ffn else None
        factor = 1.0 if scale is None else float(scale[0])
        bias = None
        # Members that own different columns of a matrix sum their products: one of them adds the bias.
        if f"{name}.bias" in self.weights and not (cut_columns and cut_columns[0] > 0):
            bias = self.weights.vector(f"{name}.bias", rows, cut, factor if ffn else 1.0)
        return self.ops.linear(x, w, factor, bias)

    def _rope_tables(self) -> tuple[Any, Any]:
        """The angles for queries and for keys: the same, unless queries grow with the position."""
        if self._tables is None:
            rope, factors = (
                self.config.rope,
                self.weights.optional("rope_freqs.weight", self.config.rope.dims // 2),
            )
            frequencies = self.weights.device.vector(rope.frequencies(factors), "the frequencies of rope")

            def table(slope: float) -> Any:
                return self.ops.rope_table(frequencies, rope.dims, rope.magnitude, slope, rope.query_period)

            of_keys = table(0.0)
            self._tables = table(rope.query_slope) if rope.query_slope else of_keys, of_keys
        return self._tables


def _times(heads: Range, dim: int) -> Range:
    """The rows that belong to a range of heads."""
    return heads[0] * dim, heads[1] * dim
