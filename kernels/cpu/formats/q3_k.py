"""Q3_K: superblocks of 256 3-bit values less 4; 16 sub-blocks with 6-bit scales less 32.

{ u8 qh[32]; u8 q[64]; u8 scales[12]; f16 d }: the low pairs of bits lie as in Q2_K; bit i of qh[j] is the
third bit of value 32 i + j. The low nibbles of scales[0:8] belong to scales 0-7, the high ones to scales
8-15; the top pair of bits of scale i is pair i // 4 of scales[8 + i % 4].
"""

import numpy as np

from ..kinds import Lanes
from ..runtime import jit, kernel
from ..simd import address_of, f16, f32x16, i8x8, i32x16, join, load, numbers, splat, to_f32, u32, zext
from .q2_k import pairs, twice
from .superblocks import superblocks_dequantize, superblocks_matmul
from .values import Values

COLUMNS = "q8"
SIZE = 110
_SECOND = Lanes([0] * 8 + [2] * 8)  # how much higher the bits of a vector's second block are
_VALUES = Values(7, offset=4)
_TOPS = np.array([8 * (i % 4) + 2 * (i // 4) for i in range(16)], np.int32)


@jit
def _unpack(p: int) -> tuple[object, object, object, object]:
    h, second = twice(p), numbers(i32x16, _SECOND)
    low, high = (h << 2) >> second, h >> second
    q_0, q_1, q_2, q_3 = pairs(p + 32)
    top = 0x04040404
    return q_0 | (low & top), q_1 | ((low >> 1) & top), q_2 | ((high >> 2) & top), q_3 | ((high >> 3) & top)


@jit
def _scale(p: int) -> object:
    low = zext(load(i8x8, p + 96))
    tops = splat(i32x16, load(u32, p + 104)) >> load(i32x16, address_of(_TOPS))
    return to_f32((join(low & 15, low >> 4) | ((tops & 3) << 4)) - 32) * splat(f32x16, load(f16, p + 108))


matmul = kernel(superblocks_matmul(_unpack, _scale, SIZE, 16, _VALUES))
dequantize = kernel(superblocks_dequantize(_unpack, _scale, SIZE, 16, _VALUES))
