"""Q3_K: superblocks of 256 3-bit values less 4; 16 sub-blocks with 6-bit scales less 32.

{ u8 qh[32]; u8 q[64]; u8 scales[12]; f16 d }: the low pairs of bits lie as in Q2_K; bit i of qh[j] is the
third bit of value 32 i + j. The low nibbles of scales[0:8] belong to scales 0-7, the high ones to scales
8-15; the top pair of bits of scale i is pair i // 4 of scales[8 + i % 4].
"""

import numpy as np

from ..runtime import jit, kernel
from ..simd import address_of, f16, f32x16, i8x8, i32x8, i32x16, join, load, splat, to_f32, u32, zext
from .q2_k import pairs
from .superblocks import superblocks_dequantize, superblocks_matmul

COLUMNS = "q8"
SIZE = 110
_TOPS = np.array([8 * (i % 4) + 2 * (i // 4) for i in range(16)], np.int32)


@jit
def _unpack(p: int) -> tuple[object, object, object, object]:
    h = load(i32x8, p)
    q_0, q_1, q_2, q_3 = pairs(p + 32)
    top = 0x04040404
    low, high = join(h << 2, h << 1), join(h >> 2, h >> 3)
    return q_0 | (low & top), q_1 | ((low >> 2) & top), q_2 | (high & top), q_3 | ((high >> 2) & top)


@jit
def _scale(p: int) -> tuple[object, object]:
    low = zext(load(i8x8, p + 96))
    tops = splat(i32x16, load(u32, p + 104)) >> load(i32x16, address_of(_TOPS))
    d = to_f32((join(low & 15, low >> 4) | ((tops & 3) << 4)) - 32) * splat(f32x16, load(f16, p + 108))
    return d, d * splat(f32x16, 4.0)


matmul = kernel(superblocks_matmul(_unpack, _scale, SIZE, 16, 7))
dequantize = kernel(superblocks_dequantize(_unpack, _scale, SIZE, 16, 7))
