"""Q4_K: superblocks of 256 nibbles; 8 sub-blocks with 6-bit scales and minima.

{ f16 d, dmin; u8 scales[12]; u8 q[128] }: the 32 bytes at q + 32 j hold sub-blocks 2 j (low) and 2 j + 1 (high).
A weight is d * scale * nibble - dmin * minimum.
"""

import numpy as np

from ..columns import scales_at, sums_at
from ..runtime import jit, kernel
from ..simd import Lanes, bitcast, dot4, f16, f32, f32x8, f32x16, fma, hsum, i8x8, i32x8, i32x16, join, load
from ..simd import prefetch, shuffle, splat, store, to_f32, u8, u32, zero, zext
from .rows import AHEAD, matmul_of

COLUMNS = "q8"
SIZE = 144
_02 = Lanes([0] * 8 + [2] * 8)
_13 = Lanes([1] * 8 + [3] * 8)
_46 = Lanes([4] * 8 + [6] * 8)
_57 = Lanes([5] * 8 + [7] * 8)


@jit
def unpack_scales(p: int) -> tuple[np.uint64, np.uint64]:
    """The 12 bytes at p: eight 6-bit scales and eight 6-bit minima, a byte each (Q5_K has the same)."""
    a, b, c = load(u32, p), load(u32, p + 4), load(u32, p + 8)
    top = np.uint32(0x30303030)
    scales_high = (c & np.uint32(0x0F0F0F0F)) | ((a >> np.uint32(2)) & top)
    minima_high = ((c >> np.uint32(4)) & np.uint32(0x0F0F0F0F)) | ((b >> np.uint32(2)) & top)
    low = np.uint32(0x3F3F3F3F)
    scales = np.uint64(a & low) | (np.uint64(scales_high) << np.uint64(32))
    return scales, np.uint64(b & low) | (np.uint64(minima_high) << np.uint64(32))


@jit
def _dot(w: int, x: int, k: int) -> np.float32:
    scales, sums = scales_at(x, k), sums_at(x, k)
    even, odd, minimum = zero(f32x16), zero(f32x16), zero(f32x8)
    for i in range(k // 256):
        p, c = w + SIZE * i, x + 256 * i
        for line in range(0, 192, 64):
            prefetch(p + AHEAD + line)
        sc, mn = unpack_scales(p + 4)
        d = to_f32(zext(bitcast(i8x8, sc))) * splat(f32x8, load(f16, p)) * load(f32x8, scales + 32 * i)
        m = to_f32(zext(bitcast(i8x8, mn))) * splat(f32x8, load(f16, p + 2))
        minimum = fma(m, load(f32x8, sums + 32 * i), minimum)
        q = load(i32x16, p + 16)
        xe, xo = join(load(i32x8, c), load(i32x8, c + 64)), join(load(i32x8, c + 32), load(i32x8, c + 96))
        even = fma(to_f32(dot4(zero(i32x16), q & 0x0F0F0F0F, xe)), shuffle(d, _02), even)
        odd = fma(to_f32(dot4(zero(i32x16), (q >> 4) & 0x0F0F0F0F, xo)), shuffle(d, _13), odd)
        q = load(i32x16, p + 80)
        xe, xo = join(load(i32x8, c + 128), load(i32x8, c + 192)), join(load(i32x8, c + 160), load(i32x8, c + 224))
        even = fma(to_f32(dot4(zero(i32x16), q & 0x0F0F0F0F, xe)), shuffle(d, _46), even)
        odd = fma(to_f32(dot4(zero(i32x16), (q >> 4) & 0x0F0F0F0F, xo)), shuffle(d, _57), odd)
    return hsum(even + odd) - hsum(minimum)


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
        sc, mn = unpack_scales(p + 4)
        for j in range(8):
            d = load(f16, p) * np.float32((sc >> np.uint64(8 * j)) & np.uint64(63))
            m = load(f16, p + 2) * np.float32((mn >> np.uint64(8 * j)) & np.uint64(63))
            for n in range(32):
                nibble = (load(u8, p + 16 + 32 * (j // 2) + n) >> (4 * (j % 2))) & 15
                store(f32, d * np.float32(nibble) - m, y + 4 * (256 * i + 32 * j + n))
