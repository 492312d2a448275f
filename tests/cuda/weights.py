"""Weights and columns for the tests of kernels: random blocks, what they stand for, columns by numpy."""

import numpy as np
from gguf import GGMLQuantizationType, quants

from tests.kernels.test_formats import FORMATS, HALVES, exact, random_rows

__all__ = [
    "FORMATS",
    "HALVES",
    "column_bytes",
    "exact",
    "extreme_rows",
    "quantized",
    "random_rows",
    "values",
    "whole_words",
]


def extreme_rows(name: str, k: int) -> np.ndarray:
    """Rows with extreme half-float scales, and blocks of all the same bytes: uint8 [12, bytes]."""
    rng = np.random.default_rng(5)
    data = random_rows(name, 12, k, rng)
    block = GGMLQuantizationType[name]
    size = quants.GGML_QUANT_SIZES[block][1]
    blocks = data.reshape(12, -1, size)
    for row, fill in enumerate((0x00, 0xFF, 0x80, 0x7F, 0x88, 0x77)):
        kept = blocks[row].copy()
        blocks[row] = fill
        for at in HALVES.get(name, []):
            blocks[row, :, at : at + 2] = kept[:, at : at + 2]
    for row, scale in enumerate((65504.0, -65504.0, 2.0**-24, -(2.0**-24), 2.0**-14, 0.0), 6):
        for at in HALVES.get(name, []):
            blocks[row, :, at : at + 2] = np.array([scale], np.float16).view(np.uint8)
    return blocks.reshape(12, -1)


def whole_words(data: np.ndarray) -> np.ndarray:
    """The bytes, and some more to make them what kernels load at once: see formats/loads.cuh."""
    return np.pad(data.view(np.uint8).ravel(), (0, -data.nbytes % 16))


def column_bytes(k: int) -> int:
    """See kernels/cuda/columns.cuh."""
    return -(-(k + k // 32 * 8) // 16) * 16


def quantized(x: np.ndarray) -> np.ndarray:
    """Columns as kernels/cuda/columns.cuh has them: float32 [n, k] to uint8 [n, column_bytes]."""
    n, k = x.shape
    blocks = x.reshape(n, k // 32, 32)
    largest = np.abs(blocks).max(2)
    with np.errstate(divide="ignore"):
        by = np.where(largest > 0, np.float32(127) / largest, np.float32(0)).clip(
            max=np.finfo(np.float32).max
        )
    q = np.rint(blocks * by[:, :, None]).astype(np.int8)
    d = largest * np.float32(1 / 127)
    out = np.zeros((n, column_bytes(k)), np.uint8)
    out[:, :k] = q.reshape(n, k).view(np.uint8)
    pairs = np.stack([d, d * q.sum(2, dtype=np.int32).astype(np.float32)], 2).astype(np.float32)
    out[:, k : k + k // 4] = pairs.reshape(n, k // 16).view(np.uint8)
    return out


def values(columns: np.ndarray, k: int) -> np.ndarray:
    """What quantized columns stand for: float64 [n, k]."""
    n = len(columns)
    q = np.ascontiguousarray(columns[:, :k]).view(np.int8).astype(np.float64)
    pairs = np.ascontiguousarray(columns[:, k : k + k // 4]).view(np.float32).reshape(n, k // 32, 2)
    return q * np.repeat(pairs[:, :, 0].astype(np.float64), 32, 1)
