"""Q6_K: superblocks of 256 6-bit values less 32; 16 sub-blocks with signed byte scales.

{ u8 ql[128]; u8 qh[64]; i8 scales[16]; f16 d }: each half of the superblock (128 values) has 64 bytes of low
nibbles and 32 bytes of high bit pairs. Values 0-63 of a half are low nibbles, 64-127 high nibbles; the pairs at
bits 0, 2, 4, 6 of qh belong to values 0-31, 32-63, 64-95, 96-127.
"""

import numpy as np

from ..columns import half_sums_at, scales_at
from ..runtime import jit, kernel
from ..simd import Lanes, dot4, f16, f32, f32x8, f32x16, fma, hsum, i8, i8x16, i32x8, i32x16, join, load, prefetch
from ..simd import sext, shuffle, splat, store, to_f32, u8, zero
from .rows import AHEAD, matmul_of

COLUMNS = "q8"
SIZE = 210
_TWICE = Lanes([i // 2 for i in range(16)])  # a scale a 32 values to one a 16
_0 = Lanes([i // 4 for i in range(16)])  # a scale a 16 values to one a lane of four
_1 = Lanes([4 + i // 4 for i in range(16)])
_2 = Lanes([8 + i // 4 for i in range(16)])
_3 = Lanes([12 + i // 4 for i in range(16)])


@jit
def _dot(w: int, x: int, k: int) -> np.float32:
    scales, half_sums = scales_at(x, k), half_sums_at(x, k)
    even, odd, offset = zero(f32x16), zero(f32x16), zero(f32x16)
    for i in range(k // 256):
        p, c = w + SIZE * i, x + 256 * i
        for line in range(0, 256, 64):
            prefetch(p + AHEAD + line)
        d = to_f32(sext(load(i8x16, p + 192))) * splat(f32x16, load(f16, p + 208))
        offset = fma(d, load(f32x16, half_sums + 64 * i), offset)
        d = d * shuffle(load(f32x8, scales + 32 * i), _TWICE)
        q, h = load(i32x16, p), load(i32x8, p + 128)
        u = (q & 0x0F0F0F0F) | (join(h << 4, h << 2) & 0x30303030)
        even = fma(to_f32(dot4(zero(i32x16), u, load(i32x16, c))), shuffle(d, _0), even)
        u = ((q >> 4) & 0x0F0F0F0F) | (join(h, h >> 2) & 0x30303030)
        odd = fma(to_f32(dot4(zero(i32x16), u, load(i32x16, c + 64))), shuffle(d, _1), odd)
        q, h = load(i32x16, p + 64), load(i32x8, p + 160)
        u = (q & 0x0F0F0F0F) | (join(h << 4, h << 2) & 0x30303030)
        even = fma(to_f32(dot4(zero(i32x16), u, load(i32x16, c + 128))), shuffle(d, _2), even)
        u = ((q >> 4) & 0x0F0F0F0F) | (join(h, h >> 2) & 0x30303030)
        odd = fma(to_f32(dot4(zero(i32x16), u, load(i32x16, c + 192))), shuffle(d, _3), odd)
    return hsum(even + odd) - np.float32(32.0) * hsum(offset)


_matmul = matmul_of(_dot)


@kernel
def matmul(task: int) -> None:
    """Rows times columns."""
    _matmul(task)


@kernel
def dequantize(w: int, k: int, y: int) -> None:
    """One row."""
    for i in range(k // 256):
        p = w + SIZE * i
        for j in range(256):
            half, n = j // 128, j % 128
            low = (load(u8, p + 64 * half + n % 64) >> (4 * (n // 64))) & 15
            high = (load(u8, p + 128 + 32 * half + n % 32) >> (2 * (n // 32))) & 3
            d = load(f16, p + 208) * np.float32(load(i8, p + 192 + j // 16))
            store(f32, d * np.float32(np.int64(low | (high << 4)) - 32), y + 4 * (256 * i + j))
