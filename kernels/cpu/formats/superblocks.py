"""Superblocks: 256 values in 8 or 16 sub-blocks with scales of their own."""

from typing import Any

import numpy as np

from ..columns import half_sums_at, scales_at, sums_at
from ..runtime import jit
from ..simd import (
    Kind,
    Lanes,
    Largest,
    bitcast,
    dot4,
    f32x8,
    f32x16,
    fma,
    hsum,
    i8x64,
    i32x16,
    load,
    shuffle,
    store,
    to_f32,
    zero,
    zext,
)
from ..tiles import LINE
from .gemm import few_or_many
from .panels import RAW, RAW_MINIMA, RAW_SCALES, panels_gemm, scales_transposer, transpose_bytes
from .rows import matmul_of, prefetch_block
from .signed import for_dots, unsigned_superblocks

_f32x64 = Kind("f32", 64)


def superblocks_matmul(unpack: Any, scale: Any, size: int, n: int, largest: int) -> Any:
    """matmul for superblocks of n sub-blocks: unpack(p) -> four times 64 bytes, scale(p) -> (d, m).

    The bytes are in i32x16; d and m have a lane a sub-block; a weight is d * byte - m; a superblock is `size`
    bytes. The bytes are unsigned, `largest` (127) at most; or they are SIGNED, scale(p) -> d, and a weight
    is d * byte.
    """
    kind = Kind("f32", n)
    unpack, scale, largest, minima = for_dots(unsigned_superblocks, unpack, scale, kind, largest)
    many = panels_gemm(_unpacker(unpack, scale, n), size, n, largest, minima)
    return few_or_many(_few_of(unpack, scale, size, n, largest, minima), many)


def _few_of(unpack: Any, scale: Any, size: int, n: int, largest: int, minima: bool) -> Any:
    """matmul for few columns; see superblocks_matmul."""
    top = Largest(largest)
    vector, sums_of = Kind("f32", n), sums_at if n == 8 else half_sums_at
    columns = Lanes([8 * i // n for i in range(n)])  # a scale a 32 values of the column to one a sub-block
    lanes_0, lanes_1, lanes_2, lanes_3 = _spread(n, 4)

    @jit
    def start() -> Any:
        """No products yet, of even and odd quarters; no minima."""
        return zero(f32x16), zero(f32x16), zero(vector)

    @jit
    def step(sums: Any, q: Any, d: Any, m: Any, x: int, k: int, i: int) -> Any:
        """sums + superblock i, unpacked, times that of a column."""
        even, odd, minimum = sums
        q_0, q_1, q_2, q_3 = q
        c = x + 256 * i
        if minima:
            minimum = fma(m, load(vector, sums_of(x, k) + 4 * n * i), minimum)
        d = d * shuffle(load(f32x8, scales_at(x, k) + 32 * i), columns)
        even = fma(to_f32(dot4(top, zero(i32x16), q_0, load(i32x16, c))), shuffle(d, lanes_0), even)
        odd = fma(to_f32(dot4(top, zero(i32x16), q_1, load(i32x16, c + 64))), shuffle(d, lanes_1), odd)
        even = fma(to_f32(dot4(top, zero(i32x16), q_2, load(i32x16, c + 128))), shuffle(d, lanes_2), even)
        odd = fma(to_f32(dot4(top, zero(i32x16), q_3, load(i32x16, c + 192))), shuffle(d, lanes_3), odd)
        return even, odd, minimum

    @jit
    def total(sums: Any) -> np.float32:
        even, odd, minimum = sums
        return hsum(even + odd) - hsum(minimum)

    @jit
    def dot(w: int, x: int, k: int) -> np.float32:
        sums = start()
        for i in range(k // 256):
            prefetch_block(w + size * i, size)
            d, m = scale(w + size * i)
            sums = step(sums, unpack(w + size * i), d, m, x, k, i)
        return total(sums)

    @jit
    def two_dots(w: int, x: int, x_2: int, k: int) -> tuple[np.float32, np.float32]:
        sums, sums_2 = start(), start()
        for i in range(k // 256):
            prefetch_block(w + size * i, size)
            (d, m), q = scale(w + size * i), unpack(w + size * i)
            sums, sums_2 = step(sums, q, d, m, x, k, i), step(sums_2, q, d, m, x_2, k, i)
        return total(sums), total(sums_2)

    return matmul_of(dot, two_dots)


def superblocks_dequantize(unpack: Any, scale: Any, size: int, n: int, largest: int) -> Any:
    """dequantize(w, k, y) for the formats of superblocks_matmul."""
    unpack, scale = unsigned_superblocks(unpack, scale, Kind("f32", n), largest)
    lanes_0, lanes_1, lanes_2, lanes_3 = _spread(n, 1)

    @jit
    def put(q: object, d: object, m: object, y: int) -> None:
        store(_f32x64, fma(to_f32(zext(bitcast(i8x64, q))), d, zero(_f32x64) - m), y)

    @jit
    def dequantize(w: int, k: int, y: int) -> None:
        for i in range(k // 256):
            d, m = scale(w + size * i)
            q_0, q_1, q_2, q_3 = unpack(w + size * i)
            put(q_0, shuffle(d, lanes_0), shuffle(m, lanes_0), y + 1024 * i)
            put(q_1, shuffle(d, lanes_1), shuffle(m, lanes_1), y + 1024 * i + 256)
            put(q_2, shuffle(d, lanes_2), shuffle(m, lanes_2), y + 1024 * i + 512)
            put(q_3, shuffle(d, lanes_3), shuffle(m, lanes_3), y + 1024 * i + 768)

    return dequantize


def _spread(n: int, values: int) -> list[Lanes]:
    """For each quarter of a superblock, n scales to a lane for so many values."""
    return [Lanes([(64 * part + i) * n // 256 for i in range(0, 64, values)]) for part in range(4)]


def _unpacker(unpack: Any, scale: Any, n: int) -> Any:
    """unpack_16 for panels_gemm."""
    kind, transpose_scales = Kind("f32", n), scales_transposer(n)

    @jit
    def unpack_16(p: int, stride: int, values: int, scratch: int, group: int) -> None:
        for r in range(16):
            q_0, q_1, q_2, q_3 = unpack(p + r * stride)
            raw = scratch + RAW + LINE * r
            store(i32x16, q_0, raw)
            store(i32x16, q_1, raw + 16 * LINE)
            store(i32x16, q_2, raw + 32 * LINE)
            store(i32x16, q_3, raw + 48 * LINE)
            d, m = scale(p + r * stride)
            store(kind, d, scratch + RAW_SCALES + LINE * r)
            store(kind, m, scratch + RAW_MINIMA + LINE * r)
        transpose_bytes(scratch, group)
        transpose_scales(scratch, group)

    return unpack_16
