"""IQ2_S: superblocks of 256 values, eight at a time from a code book of 1024.

{ f16 d; u8 q[32]; u8 signs[32]; u8 qh[8]; u8 scales[8] }: pair i of qh is the top of index q[i]; each byte of
signs belongs to eight values, nibble i of scales to values 16 i and on. A weight is
d / 4 * (scale + 1/2) * sign * entry.
"""

import numpy as np

from ..runtime import jit, kernel
from ..simd import address_of, f16, f32x8, load, store, u8
from .floats import dequantized_matmul
from .grids import SIGNS, entry, grid, signs
from .iq2_xs import nibble_scale

COLUMNS = "f32"
SIZE = 82
_GRID = grid("IQ2_S")


@jit
def _dequantize(w: int, k: int, y: int) -> None:
    for i in range(k // 8):
        p, j = w + SIZE * (i // 32), i % 32
        top = (np.int64(load(u8, p + 66 + j // 4)) >> (2 * (j % 4))) & 3
        value = entry(address_of(_GRID), np.int64(load(u8, p + 2 + j)) | (top << 8))
        value = value * signs(address_of(SIGNS), load(u8, p + 34 + j))
        store(f32x8, nibble_scale(load(f16, p), p + 74, j // 2) * value, y + 32 * i)


matmul = kernel(dequantized_matmul(_dequantize, SIZE))
dequantize = kernel(_dequantize)
