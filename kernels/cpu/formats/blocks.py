"""Blocks of 32 values with one scale, and perhaps a minimum."""

from typing import Any

import numpy as np

from ..columns import scales_at, sums_at
from ..runtime import jit
from ..simd import (
    Kind,
    Lanes,
    Largest,
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
    shuffle,
    splat,
    store,
    to_f32,
    zero,
    zext,
)
from ..tiles import LINE
from .gemm import few_or_many
from .panels import RAW, RAW_MINIMA, RAW_SCALES, panels_gemm, scales_transposer, transpose_bytes
from .rows import matmul_of, prefetch_block
from .signed import for_dots, unsigned_blocks

_f32x32 = Kind("f32", 32)
_FIRST, _ALL = Lanes([0] * 8), Lanes([0] * 32)
_transpose_scales = scales_transposer(8)


def blocks_matmul(unpack: Any, scale: Any, size: int, largest: int) -> Any:
    """matmul for formats in blocks of 32: unpack(p) -> 32 bytes in i32x8, scale(p) -> (d, m).

    A weight is d * byte - m, both f32x8 with all lanes the same; a block is `size` bytes. The bytes are
    unsigned, `largest` (127) at most; or they are SIGNED, scale(p) -> d, and a weight is d * byte.
    """
    unpack, scale, largest, minima = for_dots(unsigned_blocks, unpack, scale, f32x8, largest)
    many = panels_gemm(_unpacker(unpack, scale, size), 8 * size, 8, largest, minima)
    return few_or_many(_few_of(unpack, scale, size, largest, minima), many)


@jit
def half(p: int) -> object:
    """The half float at p in all lanes of an f32x8; reads 16 bytes.

    Not by way of a scalar, which x86 loads into the low bits of whatever a register holds: where that is a
    running sum (the compiler does not look), each block waits for the one before it.
    """
    return shuffle(load(f16x8, p), _FIRST)


def _few_of(unpack: Any, scale: Any, size: int, largest: int, minima: bool) -> Any:
    """matmul for few columns; see blocks_matmul. Blocks go by two, which fill a register."""
    top = Largest(largest)

    @jit
    def start() -> Any:
        """No products yet, no minima."""
        return zero(f32x16), zero(f32x8)

    @jit
    def step(sums: Any, q: Any, first: Any, second: Any, x: int, k: int, i: int) -> Any:
        """sums + blocks i and i + 1, unpacked, with their scales and minima, times those of a column."""
        total, minimum = sums
        (d_0, m_0), (d_1, m_1) = first, second
        scales, of_blocks = scales_at(x, k) + 4 * i, sums_at(x, k) + 4 * i
        products = dot4(top, zero(i32x16), q, load(i32x16, x + 32 * i))
        d = join(d_0 * _splat_at(scales), d_1 * _splat_at(scales + 4))
        if minima:
            minimum = minimum + fma(m_0, _splat_at(of_blocks), m_1 * _splat_at(of_blocks + 4))
        return fma(to_f32(products), d, total), minimum

    @jit
    def total_of(sums: Any, w: int, x: int, k: int) -> np.float32:
        """All lanes, and the last block where their number is odd."""
        total, minimum = sums
        result = hsum(total)
        if k // 32 % 2:
            i = k // 32 - 1
            d, m = scale(w + i * size)
            products = dot4(top, zero(i32x8), unpack(w + i * size), load(i32x8, x + 32 * i))
            result += hsum(to_f32(products) * d * _splat_at(scales_at(x, k) + 4 * i))
            if minima:
                minimum = fma(m, _splat_at(sums_at(x, k) + 4 * i), minimum)
        return result - hsum(minimum) * np.float32(0.125)

    @jit
    def dot(w: int, x: int, k: int) -> np.float32:
        sums = start()
        for i in range(0, k // 32 - 1, 2):
            p = w + i * size
            prefetch_block(p, 2 * size)
            sums = step(sums, join(unpack(p), unpack(p + size)), scale(p), scale(p + size), x, k, i)
        return total_of(sums, w, x, k)

    @jit
    def two_dots(w: int, x: int, x_2: int, k: int) -> tuple[np.float32, np.float32]:
        sums, sums_2 = start(), start()
        for i in range(0, k // 32 - 1, 2):
            p = w + i * size
            prefetch_block(p, 2 * size)
            q, first, second = join(unpack(p), unpack(p + size)), scale(p), scale(p + size)
            sums, sums_2 = step(sums, q, first, second, x, k, i), step(sums_2, q, first, second, x_2, k, i)
        return total_of(sums, w, x, k), total_of(sums_2, w, x_2, k)

    return matmul_of(dot, two_dots)


@jit
def _splat_at(p: int) -> object:
    return splat(f32x8, load(f32, p))


def blocks_dequantize(unpack: Any, scale: Any, size: int, largest: int) -> Any:
    """dequantize(w, k, y) for the formats of blocks_matmul."""
    unpack, scale = unsigned_blocks(unpack, scale, f32x8, largest)

    @jit
    def dequantize(w: int, k: int, y: int) -> None:
        for i in range(k // 32):
            d, m = scale(w + size * i)
            q = to_f32(zext(bitcast(i8x32, unpack(w + size * i))))
            store(_f32x32, fma(q, shuffle(d, _ALL), zero(_f32x32) - shuffle(m, _ALL)), y + 128 * i)

    return dequantize


def _unpacker(unpack: Any, scale: Any, size: int) -> Any:
    """unpack_16 for panels_gemm."""

    @jit
    def unpack_16(p: int, stride: int, values: int, scratch: int, group: int) -> None:
        for r in range(16):
            for i in range(values // 32):
                block = p + r * stride + i * size
                store(i32x8, unpack(block), scratch + RAW + 16 * LINE * (i // 2) + LINE * r + 32 * (i % 2))
                d, m = scale(block)
                # All eight lanes are the same, and the next block's go over all but the first.
                store(f32x8, d, scratch + RAW_SCALES + LINE * r + 4 * i)
                store(f32x8, m, scratch + RAW_MINIMA + LINE * r + 4 * i)
        transpose_bytes(scratch, group)
        _transpose_scales(scratch, group)

    return unpack_16
