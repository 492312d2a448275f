"""From the product of one row and one column to a matrix: what all formats share."""

from typing import Any

import numpy as np

from ..columns import scales_at, sums_at
from ..runtime import Struct, at, jit
from ..simd import (
    Kind,
    Lanes,
    address_of,
    bitcast,
    dot4,
    f16x8,
    f32,
    f32x8,
    f32x16,
    fma,
    hsum,
    i8x32,
    i32x8,
    i32x16,
    join,
    load,
    prefetch,
    shuffle,
    splat,
    store,
    to_f32,
    zero,
    zext,
)

# What a matmul kernel is given: y[c, r] = row r of w . column c; strides in bytes.
MATMUL = Struct("w w_stride rows x x_stride k columns y y_stride")

AHEAD = 4096  # bytes between a load and its prefetch; found by measuring decode
_f32x32 = Kind("f32", 32)
_FIRST, _ALL = Lanes([0] * 8), Lanes([0] * 32)


def matmul_of(dot: Any) -> Any:
    """All rows times all columns, from dot(row, x, k) -> float32."""

    @jit
    def matmul(task: int) -> None:
        t = at(MATMUL, task)
        for r in range(t.rows):
            for c in range(t.columns):
                store(f32, dot(t.w + r * t.w_stride, t.x + c * t.x_stride, t.k), t.y + c * t.y_stride + 4 * r)

    return matmul


@jit
def half(p: int) -> object:
    """The half float at p in all lanes of an f32x8; reads 16 bytes.

    Not by way of a scalar, which x86 loads into the low bits of whatever a register holds: where that is a
    running sum (the compiler does not look), each block waits for the one before it.
    """
    return shuffle(load(f16x8, p), _FIRST)


def blocks_dot(unpack: Any, scale: Any, size: int, dot4: Any = dot4) -> Any:
    """dot for formats in blocks of 32: unpack(p) -> 32 unsigned bytes in i32x8, scale(p) -> (d, m).

    A weight is d * byte - m, both f32x8 with all lanes the same; a block is `size` bytes. Bytes above 127
    need `dot4_full`.
    """

    @jit
    def dot(w: int, x: int, k: int) -> np.float32:
        scales, sums = scales_at(x, k), sums_at(x, k)
        total, minimum = zero(f32x16), zero(f32x8)
        blocks = k // 32
        for i in range(0, blocks - 1, 2):
            p = w + i * size
            prefetch(p + AHEAD)
            (d0, m0), (d1, m1) = scale(p), scale(p + size)
            products = dot4(zero(i32x16), join(unpack(p), unpack(p + size)), load(i32x16, x + 32 * i))
            d0, d1 = d0 * _splat_at(scales + 4 * i), d1 * _splat_at(scales + 4 * i + 4)
            total = fma(to_f32(products), join(d0, d1), total)
            minimum = minimum + fma(m0, _splat_at(sums + 4 * i), m1 * _splat_at(sums + 4 * i + 4))
        result = hsum(total)
        if blocks % 2:
            i = blocks - 1
            d, m = scale(w + i * size)
            products = dot4(zero(i32x8), unpack(w + i * size), load(i32x8, x + 32 * i))
            result += hsum(to_f32(products) * d * _splat_at(scales + 4 * i))
            minimum = fma(m, _splat_at(sums + 4 * i), minimum)
        return result - hsum(minimum) * np.float32(0.125)

    return dot


@jit
def _splat_at(p: int) -> object:
    return splat(f32x8, load(f32, p))


def blocks_dequantize(unpack: Any, scale: Any, size: int) -> Any:
    """dequantize(w, k, y) for the formats of blocks_dot."""

    @jit
    def dequantize(w: int, k: int, y: int) -> None:
        for i in range(k // 32):
            d, m = scale(w + size * i)
            q = to_f32(zext(bitcast(i8x32, unpack(w + size * i))))
            store(_f32x32, fma(q, shuffle(d, _ALL), zero(_f32x32) - shuffle(m, _ALL)), y + 128 * i)

    return dequantize


def dot_of(vector: Any, scalar: Any, size: int) -> Any:
    """dot for plain floats: of a Kind of 16, its scalar, and the bytes of one."""

    @jit
    def dot(w: int, x: int, k: int) -> np.float32:
        total, total_2 = zero(f32x16), zero(f32x16)
        for i in range(0, k - 31, 32):
            prefetch(w + size * i + AHEAD)
            total = fma(load(vector, w + size * i), load(f32x16, x + 4 * i), total)
            total_2 = fma(load(vector, w + size * (i + 16)), load(f32x16, x + 4 * i + 64), total_2)
        result = hsum(total + total_2)
        for i in range(k // 32 * 32, k):
            result += load(scalar, w + size * i) * load(f32, x + 4 * i)
        return result

    return dot


dot_f32 = dot_of(f32x16, f32, 4)


def matmul_of_dequantized(dequantize: Any) -> Any:
    """matmul for formats without a product of their own: rows in float32, by dequantize(w, k, y)."""

    @jit
    def matmul(task: int) -> None:
        t = at(MATMUL, task)
        scratch = np.empty(t.k, np.float32)
        row = address_of(scratch)
        for r in range(t.rows):
            dequantize(t.w + r * t.w_stride, t.k, row)
            for c in range(t.columns):
                store(f32, dot_f32(row, t.x + c * t.x_stride, t.k), t.y + c * t.y_stride + 4 * r)
        # Numba frees an array after its last use that it can see, and it cannot see addresses.
        scratch[0] = 0.0

    return matmul
