"""IQ2_XS: superblocks of 256 values, eight at a time from a code book of 512.

{ f16 d; u16 q[32]; u8 scales[8] }: q is an index of 9 bits and, above, seven bits of signs (see EVEN_SIGNS);
nibble i of scales belongs to values 16 i and on. A weight is d / 4 * (scale + 1/2) * sign * entry.
"""

import numpy as np

from ..runtime import jit, kernel
from ..simd import address_of, f16, f32x8, load, splat, store, u8, u16
from .floats import dequantized_matmul
from .grids import EVEN_SIGNS, entry, grid, signs

COLUMNS = "f32"
SIZE = 74
_GRID = grid("IQ2_XS")


@jit
def nibble_scale(d: np.float32, scales: int, i: int) -> object:
    """d / 4 * (nibble i of scales + 1/2), in all lanes (IQ2_S has the same)."""
    nibble = (np.int64(load(u8, scales + i // 2)) >> (4 * (i % 2))) & 15
    return splat(f32x8, d * (np.float32(nibble) + np.float32(0.5)) * np.float32(0.25))


@jit
def _dequantize(w: int, k: int, y: int) -> None:
    for i in range(k // 8):
        p, j = w + SIZE * (i // 32), i % 32
        q = np.int64(load(u16, p + 2 + 2 * j))
        value = signs(address_of(EVEN_SIGNS), q >> 9) * entry(address_of(_GRID), q & 511)
        store(f32x8, nibble_scale(load(f16, p), p + 66, j // 2) * value, y + 32 * i)


matmul = kernel(dequantized_matmul(_dequantize, SIZE))
dequantize = kernel(_dequantize)
