"""MXFP4: blocks of 32 4-bit floats (E2M1), one power of two (E8M0) as scale. { u8 e; u8 q[16] }

The nibbles of q lie as in Q4_0. The table has twice the floats, to be whole numbers, and 12 more, to be
unsigned: a weight is 2 ** (e - 128) * (table[nibble] - 12).
"""

import numpy as np

from ..runtime import jit, kernel
from ..simd import address_of, bitcast, f32x8, gather, i8x8, i8x16, load, lookup, maximum, zext
from .blocks import blocks_dequantize, blocks_matmul
from .q4_0 import nibbles
from .values import Values

COLUMNS = "q8"
SIZE = 17
_VALUES = Values(24, offset=12)
_POSITIVE = np.array([0, 1, 2, 3, 4, 6, 8, 12])
_UNSIGNED = np.concatenate([12 + _POSITIVE, 12 - _POSITIVE]).astype(np.uint8)


@jit
def _unpack(p: int, q: int) -> object:
    return lookup(load(i8x16, address_of(_UNSIGNED)), nibbles(p + 1, q + 1))


@jit
def _scale(p: int) -> object:
    e = zext(gather(i8x8, p, SIZE))
    # The bits of the float; below 2 ** -126 they are a mantissa.
    return bitcast(f32x8, maximum((e - 1) << 23, (e + 1) << 21))


matmul = kernel(blocks_matmul(_unpack, _scale, SIZE, _VALUES))
dequantize = kernel(blocks_dequantize(_unpack, _scale, SIZE, _VALUES))
