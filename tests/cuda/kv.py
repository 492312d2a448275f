"""The KV cache's cells as kernels/cuda/cells.cuh lays them out, and attention over them in float64."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PAGE, BLOCK = 64, 32

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


def padded(x: Floats) -> Floats:
    """Rows filled up with zeros to whole blocks."""
    return np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % BLOCK)])


def bf16(x: Floats) -> NDArray[np.uint16]:
    """To nearest, ties to even."""
    bits = x.view(np.uint32).astype(np.uint64)
    rounded: NDArray[np.uint16] = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    return rounded


def q8_0(x: Floats) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Bytes [..., values] and scales [..., blocks]: as kernels/cpu/cache/q8_0.py has them."""
    blocks = x.reshape(*x.shape[:-1], -1, BLOCK)
    largest = np.abs(blocks).max(-1, keepdims=True)
    by = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0)
    quants = np.rint(blocks * by).astype(np.int8).reshape(x.shape)
    return quants, (largest[..., 0] / np.float32(127)).astype(np.float16)


def pack(kind: str, cells: Floats) -> NDArray[np.uint8]:
    """Bytes of cells[page, head, position, value]: a row for each page and head."""
    x = padded(cells)
    if kind == "q8_0":
        quants, scales = q8_0(x)
        parts = [quants, np.ascontiguousarray(np.swapaxes(scales, 2, 3))]
    else:
        parts = [bf16(x) if kind == "bf16" else x.astype({"f32": np.float32, "f16": np.float16}[kind])]
    return np.concatenate([p.reshape(-1, p[0, 0].size).view(np.uint8) for p in parts], axis=1)


def kept(kind: str, x: Floats) -> Doubles:
    """What cells of a kind make of values."""
    if kind == "q8_0":
        quants, scales = q8_0(padded(x))
        exact = quants.astype(np.float64) * np.repeat(scales.astype(np.float64), BLOCK, -1)
        return exact[..., : x.shape[-1]]
    if kind == "bf16":
        return (bf16(x).astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return x.astype({"f32": np.float32, "f16": np.float16}[kind]).astype(np.float64)


@dataclass(frozen=True)
class Options:
    """Of attention, beside its shapes."""

    window: int = 0
    cap: float = 0.0
    sinks: Floats | None = None  # [heads]


def attention(q: Doubles, keys: Doubles, values: Doubles, position: int, scale: float, o: Options) -> Doubles:
    """One token: q[heads, dim], keys and values [kv_heads, position, dim], to [heads, value_dim]."""
    heads, first = len(q), max(0, position - o.window + 1) if o.window else 0
    k, v = (np.repeat(x[:, first : position + 1], heads // len(x), 0) for x in (keys, values))
    scores = np.einsum("hd,hpd->hp", q, k) * scale
    if o.cap:
        scores = o.cap * np.tanh(scores / o.cap)
    sinks = np.full(heads, -np.inf) if o.sinks is None else o.sinks.astype(np.float64)
    top = np.maximum(scores.max(1), sinks)
    weights = np.exp(scores - top[:, None])
    mixed: Doubles = np.einsum("hp,hpd->hd", weights, v)
    return mixed / (weights.sum(1) + np.exp(sinks - top))[:, None]
