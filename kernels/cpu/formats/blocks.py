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
    prefetch,
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
from .rows import AHEAD, matmul_of
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
    return few_or_many(matmul_of(_dot_of(unpack, scale, size, largest, minima)), many)


@jit
def half(p: int) -> object:
    """The half float at p in all lanes of an f32x8; reads 16 bytes.

    Not by way of a scalar, which x86 loads into the low bits of whatever a register holds: where that is a
    running sum (the compiler does not look), each block waits for the one before it.
    """
    return shuffle(load(f16x8, p), _FIRST)


def _dot_of(unpack: Any, scale: Any, size: int, largest: int, minima: bool) -> Any:
    """dot(row, x, k) -> float32; see blocks_matmul."""
    top = Largest(largest)

    @jit
    def dot(w: int, x: int, k: int) -> np.float32:
        scales, sums = scales_at(x, k), sums_at(x, k)
        total, minimum = zero(f32x16), zero(f32x8)
        blocks = k // 32
        for i in range(0, blocks - 1, 2):
            p = w + i * size
            prefetch(p + AHEAD)
            (d0, m0), (d1, m1) = scale(p), scale(p + size)
            products = dot4(top, zero(i32x16), join(unpack(p), unpack(p + size)), load(i32x16, x + 32 * i))
            d0, d1 = d0 * _splat_at(scales + 4 * i), d1 * _splat_at(scales + 4 * i + 4)
            total = fma(to_f32(products), join(d0, d1), total)
            if minima:
                minimum = minimum + fma(m0, _splat_at(sums + 4 * i), m1 * _splat_at(sums + 4 * i + 4))
        result = hsum(total)
        if blocks % 2:
            i = blocks - 1
            d, m = scale(w + i * size)
            products = dot4(top, zero(i32x8), unpack(w + i * size), load(i32x8, x + 32 * i))
            result += hsum(to_f32(products) * d * _splat_at(scales + 4 * i))
            if minima:
                minimum = fma(m, _splat_at(sums + 4 * i), minimum)
        return result - hsum(minimum) * np.float32(0.125)

    return dot


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
