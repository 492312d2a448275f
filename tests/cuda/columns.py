"""Quantized columns as kernels/cuda/columns.cuh has them, in numpy."""

import numpy as np
from numpy.typing import NDArray


def quantized(x: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Columns [n, k] to bytes [n, column_bytes(k)]."""
    n, k = x.shape
    blocks = x.reshape(n, k // 32, 32)
    largest = np.abs(blocks).max(-1, initial=0.0, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = np.where(largest > 0, np.float32(127.0) / largest, np.float32(0.0))
    whole = np.rint(blocks * np.minimum(inverse, np.finfo(np.float32).max)).astype(np.int8)
    d = largest[..., 0] * np.float32(1.0 / 127.0)
    pairs = np.stack([d, d * whole.sum(-1, dtype=np.int32).astype(np.float32)], -1).astype(np.float32)
    parts = [whole.reshape(n, k).view(np.uint8), pairs.reshape(n, -1).view(np.uint8)]
    return np.concatenate([*parts, np.zeros((n, -(k + k // 4) % 16), np.uint8)], 1)


def values(columns: NDArray[np.uint8], k: int) -> NDArray[np.float64]:
    """What they stand for: [n, k]."""
    n = len(columns)
    whole = columns[:, :k].view(np.int8).astype(np.float64)
    pairs = np.ascontiguousarray(columns[:, k : k + k // 4]).view(np.float32).reshape(n, -1, 2)
    return whole * np.repeat(pairs[..., 0].astype(np.float64), 32, 1)
