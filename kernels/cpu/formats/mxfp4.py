"""MXFP4: blocks of 32 4-bit floats (E2M1), one power of two (E8M0) as scale. { u8 e; u8 q[16] }

The nibbles of q lie as in Q4_0. The table has twice the floats, to be whole numbers: a weight is
2 ** (e - 128) * table[nibble].
"""

import numpy as np

from ..runtime import jit, kernel
from ..simd import address_of, f32, f32x8, i8x16, load, lookup, splat, u8
from .blocks import blocks_dequantize, blocks_matmul
from .q4_0 import nibbles

COLUMNS = "q8"
SIZE = 17
_POSITIVE = np.array([0, 1, 2, 3, 4, 6, 8, 12])
_UNSIGNED = np.concatenate([12 + _POSITIVE, 12 - _POSITIVE]).astype(np.uint8)
_POWERS = np.ldexp(np.float32(1.0), np.arange(256) - 128)


@jit
def _unpack(p: int) -> object:
    return lookup(load(i8x16, address_of(_UNSIGNED)), nibbles(p + 1))


@jit
def _scale(p: int) -> tuple[object, object]:
    d = splat(f32x8, load(f32, address_of(_POWERS) + 4 * load(u8, p)))
    return d, d * splat(f32x8, 12.0)


matmul = kernel(blocks_matmul(_unpack, _scale, SIZE, 24))
dequantize = kernel(blocks_dequantize(_unpack, _scale, SIZE, 24))
