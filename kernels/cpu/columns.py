"""Columns: what weights are multiplied with, as float32 or quantized to bytes in blocks of 32.

A quantized column of k values (a multiple of 32) lies in memory as

    k      int8      x ~ byte * scale, byte in [-127, 127]
    k/32   float32   scales
    k/32   float32   scale * the sum of a block's bytes
    k/16   float32   the same for halves of blocks

so that a weight format with an offset or a minimum multiplies it with a sum instead of with every value.
"""

from typing import Any

import numpy as np

from .runtime import Struct, at, jit, kernel, share
from .simd import (
    absolute,
    f32,
    f32x16,
    hmax,
    hsum,
    i8x16,
    i64,
    load,
    maximum,
    minimum,
    rounded,
    splat,
    store,
    to_i32,
    zero,
)

QUANTIZE = Struct("n x y k")

ROOM = 7
"""Columns that products may read beyond the last: there must be memory, whatever is in it."""


@jit
def column_bytes(k: int) -> int:
    """The size of a quantized column of k values."""
    return k + k // 2


@jit
def scales_at(x: int, k: int) -> int:
    """Where a quantized column's scales begin."""
    return x + k


@jit
def sums_at(x: int, k: int) -> int:
    """Where the sums over 32 begin."""
    return x + k + k // 8


@jit
def half_sums_at(x: int, k: int) -> int:
    """Where the sums over 16 begin."""
    return x + k + k // 4


@jit
def _bytes(x: Any, inverse: np.float32) -> Any:
    one = splat(f32x16, np.float32(127.0))
    return to_i32(rounded(maximum(minimum(x * splat(f32x16, inverse), one), zero(f32x16) - one)))


@jit
def _quantize_column(x: int, y: int, k: int) -> None:
    scales, sums, half_sums = scales_at(y, k), sums_at(y, k), half_sums_at(y, k)
    for block in range(k // 32):
        low, high = load(f32x16, x + 128 * block), load(f32x16, x + 128 * block + 64)
        largest = hmax(maximum(absolute(low), absolute(high)))
        inverse = np.float32(127.0) / largest if largest > np.float32(0.0) else np.float32(0.0)
        # What is no number has no byte, and is never the largest; the scale carries it on: inf - inf is none.
        scale = largest * np.float32(1.0 / 127.0) + hsum((low - low) + (high - high))
        q_low, q_high = _bytes(low, inverse), _bytes(high, inverse)
        store(i8x16, q_low, y + 32 * block)
        store(i8x16, q_high, y + 32 * block + 16)
        sum_low, sum_high = scale * np.float32(hsum(q_low)), scale * np.float32(hsum(q_high))
        store(f32, scale, scales + 4 * block)
        store(f32, sum_low + sum_high, sums + 4 * block)
        store(f32, sum_low, half_sums + 8 * block)
        store(f32, sum_high, half_sums + 8 * block + 4)


@kernel
def quantize(args: int, thread: int, threads: int) -> None:
    """QUANTIZE: n columns of k float32 at x to quantized columns at y."""
    a = at(QUANTIZE, args)
    begin, end = share(load(i64, a.n), thread, threads, 1)
    for i in range(begin, end):
        _quantize_column(a.x + 4 * a.k * i, a.y + column_bytes(a.k) * i, a.k)
