"""Cells of Q8_0: blocks of 32 signed bytes with a half-float scale."""

import numpy as np

from ..runtime import kernel
from ..simd import f16, f32, f32x16, fma, hsum, i8, i8x16, load, sext, splat, store, to_f32, zero
from . import padded

SIZE = 34


def row_bytes(d: int) -> int:
    """The size of a row of d values."""
    return SIZE * padded(d) // 32


@kernel
def write(x: int, row: int, d: int) -> None:
    """Fill a row."""
    buffer = np.zeros(32, np.float32)
    for block in range((d + 31) // 32):
        for i in range(32):
            buffer[i] = load(f32, x + 4 * (32 * block + i)) if 32 * block + i < d else np.float32(0.0)
        largest = np.abs(buffer).max()
        inverse = np.float32(127.0) / largest if largest > 0 else np.float32(0.0)
        p = row + SIZE * block
        store(f16, largest / np.float32(127.0), p)
        for i in range(32):
            store(i8, np.int64(np.rint(buffer[i] * inverse)), p + 2 + i)


@kernel
def scores(q: int, rows: int, row_bytes: int, n: int, d: int, out: int) -> None:
    """Products of a query with n rows."""
    for j in range(n):
        total = zero(f32x16)
        for block in range(d // 32):
            p, x = rows + j * row_bytes + SIZE * block, q + 128 * block
            low, high = to_f32(sext(load(i8x16, p + 2))), to_f32(sext(load(i8x16, p + 18)))
            products = fma(high, load(f32x16, x + 64), low * load(f32x16, x))
            total = fma(products, splat(f32x16, load(f16, p)), total)
        store(f32, hsum(total), out + 4 * j)


@kernel
def mix(p: int, rows: int, row_bytes: int, n: int, d: int, y: int) -> None:
    """The weighted sum of n rows."""
    for block in range(d // 32):
        at = y + 128 * block
        low, high = load(f32x16, at), load(f32x16, at + 64)
        for j in range(n):
            row = rows + j * row_bytes + SIZE * block
            weight = splat(f32x16, load(f32, p + 4 * j) * load(f16, row))
            low = fma(weight, to_f32(sext(load(i8x16, row + 2))), low)
            high = fma(weight, to_f32(sext(load(i8x16, row + 18))), high)
        store(f32x16, low, at)
        store(f32x16, high, at + 64)


@kernel
def unpack(rows: int, row_bytes: int, n: int, d: int, y: int) -> None:
    """n rows to floats."""
    for j in range(n):
        for block in range(d // 32):
            p, at = rows + j * row_bytes + SIZE * block, y + 4 * (j * d + 32 * block)
            scale = splat(f32x16, load(f16, p))
            store(f32x16, to_f32(sext(load(i8x16, p + 2))) * scale, at)
            store(f32x16, to_f32(sext(load(i8x16, p + 18))) * scale, at + 64)
