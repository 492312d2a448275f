"""IQ2_XXS: superblocks of 256 values, eight at a time from a code book of 256.

{ f16 d; { u8 index[4]; u32 s } [8] }: each 32 values have four indices; s holds four times seven bits of
signs (see EVEN_SIGNS) and, on top, a scale of 4 bits. A weight is d / 4 * (scale + 1/2) * sign * entry.
"""

import numpy as np

from ..runtime import jit, kernel
from ..simd import address_of, f16, f32x8, load, splat, store, u8, u32
from .floats import dequantized_matmul
from .grids import EVEN_SIGNS, entry, grid, signs

COLUMNS = "f32"
SIZE = 66
_GRID = grid("IQ2_XXS")


@jit
def _dequantize(w: int, k: int, y: int) -> None:
    for i in range(k // 32):
        p = w + SIZE * (i // 8)
        q = p + 2 + 8 * (i % 8)
        s = np.int64(load(u32, q + 4))
        d = splat(f32x8, load(f16, p) * (np.float32(s >> 28) + np.float32(0.5)) * np.float32(0.25))
        for j in range(4):
            sign = signs(address_of(EVEN_SIGNS), (s >> (7 * j)) & 127)
            store(f32x8, d * sign * entry(address_of(_GRID), load(u8, q + j)), y + 128 * i + 32 * j)


matmul = kernel(dequantized_matmul(_dequantize, SIZE))
dequantize = kernel(_dequantize)
