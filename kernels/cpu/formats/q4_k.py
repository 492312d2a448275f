"""Q4_K: superblocks of 256 nibbles; 8 sub-blocks with 6-bit scales and minima.

{ f16 d, dmin; u8 scales[12]; u8 q[128] }: the 32 bytes at q + 32 j hold sub-blocks 2 j (low) and 2 j + 1
(high). A weight is d * scale * nibble - dmin * minimum. Scales 0-3 are the low six bits of scales[0:4],
minima 0-3 those of scales[4:8]; scales 4-7 are the low nibbles of scales[8:12], minima 4-7 the high ones, and
the free bits of the first eight bytes are their tops.
"""

import numpy as np

from ..kinds import Lanes
from ..runtime import jit, kernel
from ..simd import bitcast, f16x8, i8x8, i32x16, load, shuffle, to_f32, u32, zext
from .superblocks import superblocks_dequantize, superblocks_matmul
from .values import Values

COLUMNS = "q8"
SIZE = 144
_FIRST, _SECOND = Lanes([0] * 8), Lanes([1] * 8)
_VALUES = Values(15, minima=True)


@jit
def nibbles(p: int) -> tuple[object, object, object, object]:
    """256 values from the 128 bytes at p (Q5_K has the same)."""
    low, high, mask = load(i32x16, p), load(i32x16, p + 64), 0x0F0F0F0F
    return low & mask, (low >> 4) & mask, high & mask, (high >> 4) & mask


@jit
def _unpack(p: int) -> tuple[object, object, object, object]:
    return nibbles(p + 16)


@jit
def scale(p: int) -> tuple[object, object]:
    """The scales and minima of the block at p (Q5_K has the same)."""
    a, b, c = load(u32, p + 4), load(u32, p + 8), load(u32, p + 12)
    low, top, nibble = np.uint32(0x3F3F3F3F), np.uint32(0x30303030), np.uint32(0x0F0F0F0F)
    scales_high = (c & nibble) | ((a >> np.uint32(2)) & top)
    minima_high = ((c >> np.uint32(4)) & nibble) | ((b >> np.uint32(2)) & top)
    scales = np.uint64(a & low) | (np.uint64(scales_high) << np.uint64(32))
    minima = np.uint64(b & low) | (np.uint64(minima_high) << np.uint64(32))
    both = load(f16x8, p)  # of which the first two are d and dmin
    d, m = to_f32(zext(bitcast(i8x8, scales))), to_f32(zext(bitcast(i8x8, minima)))
    return d * shuffle(both, _FIRST), m * shuffle(both, _SECOND)


matmul = kernel(superblocks_matmul(_unpack, scale, SIZE, 8, _VALUES))
dequantize = kernel(superblocks_dequantize(_unpack, scale, SIZE, 8, _VALUES))
