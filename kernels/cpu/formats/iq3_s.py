"""IQ3_S: superblocks of 256 values, four at a time from a code book of 512.

{ f16 d; u8 q[64]; u8 qh[8]; u8 signs[32]; u8 scales[4] }: bit i of qh is the top of index q[i]; each byte of
signs belongs to eight values, nibble i of scales to values 32 i and on. A weight is
d * (2 * scale + 1) * sign * entry.
"""

import numpy as np

from ..runtime import jit, kernel
from ..simd import address_of, f16, f32x8, load, splat, store, u8
from .floats import dequantized_matmul
from .grids import SIGNS, grid, signs, two_entries

COLUMNS = "f32"
SIZE = 110
_GRID = grid("IQ3_S")


@jit
def _index(p: int, i: int) -> np.int64:
    top = (np.int64(load(u8, p + 66 + i // 8)) >> (i % 8)) & 1
    return np.int64(load(u8, p + 2 + i)) | (top << 8)


@jit
def _dequantize(w: int, k: int, y: int) -> None:
    for i in range(k // 8):
        p, j = w + SIZE * (i // 32), i % 32
        scale = (np.int64(load(u8, p + 106 + j // 8)) >> (4 * (j // 4 % 2))) & 15
        value = two_entries(address_of(_GRID), _index(p, 2 * j), _index(p, 2 * j + 1))
        value = value * signs(address_of(SIGNS), load(u8, p + 74 + j))
        store(f32x8, splat(f32x8, load(f16, p) * np.float32(2 * scale + 1)) * value, y + 32 * i)


matmul = kernel(dequantized_matmul(_dequantize, SIZE))
dequantize = kernel(_dequantize)
