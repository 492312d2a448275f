"""IQ1_S: superblocks of 256 values, eight at a time from a code book of 2048.

{ f16 d; u8 q[32]; u16 qh[8] }: each qh belongs to 32 values: four times three bits, the tops of their
indices, a scale of three bits, and the sign of a delta of 1/8. A weight is
d * (2 * scale + 1) * (entry + delta).
"""

import numpy as np

from ..runtime import jit, kernel
from ..simd import address_of, f16, f32x8, load, splat, store, u8, u16
from .floats import dequantized_matmul
from .grids import entry, grid

COLUMNS = "f32"
SIZE = 50
_GRID = grid("IQ1_S")


@jit
def values(q: int, top: int, minus: int, d: np.float32) -> object:
    """Eight values, d * (entry + delta), of the index byte at q (IQ1_M has the same)."""
    delta = np.float32(-0.125) if minus else np.float32(0.125)
    code = entry(address_of(_GRID), np.int64(load(u8, q)) | (top << 8))
    return (code + splat(f32x8, delta)) * splat(f32x8, d)


@jit
def _dequantize(w: int, k: int, y: int) -> None:
    for i in range(k // 8):
        p, j = w + SIZE * (i // 32), i % 32
        h = np.int64(load(u16, p + 34 + 2 * (j // 4)))
        d = load(f16, p) * np.float32(2 * ((h >> 12) & 7) + 1)
        store(f32x8, values(p + 2 + j, (h >> (3 * (j % 4))) & 7, h >> 15, d), y + 32 * i)


matmul = kernel(dequantized_matmul(_dequantize, SIZE))
dequantize = kernel(_dequantize)
