"""IQ3_XXS: superblocks of 256 values, four at a time from a code book of 256.

{ f16 d; u8 q[64]; u32 s[8] }: each s belongs to 32 values: four times seven bits of signs (see EVEN_SIGNS)
and, on top, a scale of 4 bits. A weight is d / 2 * (scale + 1/2) * sign * entry.
"""

import numpy as np

from ..runtime import jit, kernel
from ..simd import address_of, f16, f32x8, load, splat, store, u8, u32
from .floats import dequantized_matmul
from .grids import EVEN_SIGNS, grid, signs, two_entries

COLUMNS = "f32"
SIZE = 98
_GRID = grid("IQ3_XXS")


@jit
def _dequantize(w: int, k: int, y: int) -> None:
    for i in range(k // 8):
        p, j = w + SIZE * (i // 32), i % 32
        s = np.int64(load(u32, p + 66 + 4 * (j // 4)))
        d = load(f16, p) * (np.float32(s >> 28) + np.float32(0.5)) * np.float32(0.5)
        value = two_entries(address_of(_GRID), load(u8, p + 2 + 2 * j), load(u8, p + 3 + 2 * j))
        value = value * signs(address_of(EVEN_SIGNS), (s >> (7 * (j % 4))) & 127)
        store(f32x8, splat(f32x8, d) * value, y + 32 * i)


matmul = kernel(dequantized_matmul(_dequantize, SIZE))
dequantize = kernel(_dequantize)
