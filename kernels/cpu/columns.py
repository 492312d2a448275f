"""Columns: what weights are multiplied with, as float32 or quantized to bytes in blocks of 32.

A superblock of 256 values of a quantized column is SIZE bytes,

    256  int8      x ~ byte * scale, byte in [-127, 127]
     16  float32   scales
     16  float32   scale * the sum of the bytes, of each half of a block
     16  int32     less the sum of the bytes, of each half of a block
      8  float32   scale * the sum of the bytes, of each block
      8  int32     less the sum of the bytes, of each block

where all but the last two are in lanes: a lane of 16 is a half of a block, see HALVES. So all products of a
half of a block end in one lane, and are summed before they are scaled. With the sums, a format that has an
offset or a minimum multiplies it once and not with every value.

The superblocks of all n columns lie side by side: superblock i of column c is at x + (i * n + c) * SIZE.
Behind the last value of a column there are zeros.
"""

import numpy as np

from .kinds import Lanes
from .runtime import Struct, at, jit, kernel, share
from .simd import (
    Largest,
    dots,
    f32,
    f32x8,
    f32x16,
    hmax,
    i8x16,
    i32,
    i32x4,
    i32x8,
    i32x16,
    i64,
    join,
    load,
    maximum,
    quads_across,
    rounded,
    shuffle,
    splat,
    store,
    to_f32,
    to_i32,
    zero,
)

QUANTIZE = Struct("n x y k")

ROOM = 7
"""Columns that products may read beyond the last: there must be memory, whatever is in it."""

VALUES, SIZE = 256, 512
SCALES, HALF_SUMS, LESS_HALF_SUMS, SUMS, LESS_SUMS = 256, 320, 384, 448, 480
"""Where the parts of a superblock begin."""

HALVES = (0, 2, 8, 10, 1, 3, 9, 11, 4, 6, 12, 14, 5, 7, 13, 15)
"""The half of a block that is in each lane.

It is what becomes of vectors with blocks 0 and 2, 1 and 3, 4 and 6, 5 and 7, transposed four lanes at a time,
and these are what most formats are easily unpacked to.
"""

_BLOCKS = Lanes([half // 2 for half in HALVES])
_EVEN, _ODD = (Lanes([HALVES.index(2 * block + i) for block in range(8)]) for i in (0, 1))
_ONE = Largest(1)
_NOT_FINITE = 0x7F800000
_MOST = np.finfo(np.float32).max


def column_bytes(k: int) -> int:
    """The size of a quantized column of k values."""
    return (k + VALUES - 1) // VALUES * SIZE


@jit
def lane(half: int) -> int:
    """The lane of a half of a block: HALVES[lane] == half."""
    return (half & 4) << 1 | (half & 1) << 2 | half >> 3 << 1 | half >> 1 & 1


@jit
def bytes_of(x: int, half: int) -> int:
    """Where, in the superblock at x, the first four bytes of a half are; the next are 64 bytes further."""
    return x + 4 * lane(half)


@jit
def _quantize_block(x: int, y: int, scale_at: int) -> None:
    """32 values at x to bytes at y, and their scale."""
    low, high = load(f32x16, x), load(f32x16, x + 64)
    # As integers: what is no number is larger than all that are.
    largest = hmax(maximum(load(i32x16, x) & 0x7FFFFFFF, load(i32x16, x + 64) & 0x7FFFFFFF))
    store(i32, largest, scale_at)
    scale = load(f32, scale_at)
    # What is no number has no byte; the scale carries it on: inf - inf is none.
    scale = scale if largest < _NOT_FINITE else scale - scale
    inverse = np.float32(127.0) / scale if scale > np.float32(0.0) else np.float32(0.0)
    by = splat(f32x16, min(inverse, _MOST))
    if largest < _NOT_FINITE:
        store(i8x16, to_i32(rounded(low * by)), y)
        store(i8x16, to_i32(rounded(high * by)), y + 16)
    else:
        store(i32x8, zero(i32x8), y)
    store(f32, scale * np.float32(1.0 / 127.0), scale_at)


@jit
def _finish_superblock(y: int) -> None:
    """Bytes in order at y, scales in order at SUMS, to a superblock."""
    q_0, q_1 = join(load(i32x8, y), load(i32x8, y + 64)), join(load(i32x8, y + 32), load(i32x8, y + 96))
    q_2 = join(load(i32x8, y + 128), load(i32x8, y + 192))
    q_3 = join(load(i32x8, y + 160), load(i32x8, y + 224))
    q_0, q_1, q_2, q_3 = quads_across(q_0, q_1, q_2, q_3)
    store(i32x16, q_0, y)
    store(i32x16, q_1, y + 64)
    store(i32x16, q_2, y + 128)
    store(i32x16, q_3, y + 192)
    one = splat(i32x16, np.int32(0x01010101))
    less = zero(i32x16) - dots(_ONE, zero(i32x16), (one, one, one, one), y, 64)
    scales = shuffle(load(f32x8, y + SUMS), _BLOCKS)
    sums = scales * to_f32(zero(i32x16) - less)
    store(f32x16, scales, y + SCALES)
    store(f32x16, sums, y + HALF_SUMS)
    store(i32x16, less, y + LESS_HALF_SUMS)
    store(f32x8, shuffle(sums, _EVEN) + shuffle(sums, _ODD), y + SUMS)
    store(i32x8, shuffle(less, _EVEN) + shuffle(less, _ODD), y + LESS_SUMS)


@kernel
def quantize(args: int, thread: int, threads: int) -> None:
    """QUANTIZE: n columns of k float32 (a multiple of 32) at x to quantized columns at y."""
    a = at(QUANTIZE, args)
    n, superblocks = load(i64, a.n), (a.k + VALUES - 1) // VALUES
    begin, end = share(n * superblocks, thread, threads, 1)
    for i in range(begin, end):
        column, superblock = i // superblocks, i % superblocks
        x, y = a.x + 4 * (a.k * column + VALUES * superblock), a.y + SIZE * (superblock * n + column)
        blocks = min(8, (a.k - VALUES * superblock) // 32)
        for block in range(blocks):
            _quantize_block(x + 128 * block, y + 32 * block, y + SUMS + 4 * block)
        for byte in range(32 * blocks, VALUES, 16):
            store(i32x4, zero(i32x4), y + byte)
        for block in range(blocks, 8):
            store(f32, np.float32(0.0), y + SUMS + 4 * block)
        _finish_superblock(y)
