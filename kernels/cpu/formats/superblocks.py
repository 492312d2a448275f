"""Superblocks: 256 values in 8 or 16 sub-blocks with scales of their own."""

from typing import Any

import numpy as np

from ..columns import HALF_SUMS, HALVES, LESS_HALF_SUMS, SCALES, VALUES
from ..columns import SIZE as COLUMN
from ..kinds import Kind, Lanes
from ..llvm_ir import SIGNED
from ..runtime import jit
from ..simd import (
    Largest,
    address_of,
    bitcast,
    dots,
    f32,
    f32x16,
    fma,
    hsum,
    i8x64,
    i32x16,
    load,
    negated,
    quads_across,
    sext,
    shuffle,
    store,
    to_f32,
    zero,
    zext,
)
from .panels import panels_gemm
from .rows import AHEAD, matmul_of, prefetch_block
from .values import Values, for_dots, scale_and_minimum

PAIRS = ((0, 2), (1, 3), (4, 6), (5, 7))
"""The blocks in each of the four vectors that a superblock is unpacked to."""

_f32x32 = Kind("f32", 32)
_FIRST, _SECOND = Lanes(range(32)), Lanes(range(32, 64))


@jit
def whole(p: int, values: int, scratch: int) -> int:
    """The superblock at p, which is all there: it is read where it lies."""
    return p


def superblocks_matmul(
    unpack: Any, scale: Any, size: int, n: int, values: Values, complete: Any = whole, room: int = 0
) -> Any:
    """matmul for superblocks of n sub-blocks: unpack(p) -> four times 64 bytes in i32x16.

    A vector has two blocks of 32 values: 0 and 2, 1 and 3, 4 and 6, 5 and 7.
    scale(p) -> f32 vectors with a lane a sub-block: (d, m) or d, see Values. A superblock is `size` bytes.
    complete(p, values, scratch) -> where the superblock at p can be read, of which only so many values may be
    there: at scratch, in `room` bytes that were zero.
    """
    values, unpack = for_dots(values, unpack)
    scale = scale_and_minimum(values, scale)
    one, few = _products_of(unpack, scale, size, n, values, complete, room)
    return matmul_of(one, few, panels_gemm(unpack, scale, size, n, values, complete, room), 1, 2 * room)


def _products_of(
    unpack: Any, scale: Any, size: int, n: int, values: Values, complete: Any, room: int
) -> tuple[Any, Any]:
    """one and few for matmul_of; see superblocks_matmul."""
    top, offset, minima = Largest(values.largest), values.offset, values.minima
    lanes = Lanes([half * n // 16 for half in HALVES])  # a scale a sub-block to one a half of a block

    @jit
    def unpacked(p: int) -> Any:
        """A superblock in lanes of half blocks: four vectors of bytes, scales, minima with another sign."""
        d, m = scale(p)
        q_0, q_1, q_2, q_3 = unpack(p)
        return quads_across(q_0, q_1, q_2, q_3), shuffle(d, lanes), negated(shuffle(m, lanes))

    @jit
    def step(total: Any, weights: Any, x: int) -> Any:
        """total + the products of an unpacked superblock with that of a column at x."""
        q, d, less = weights
        products = zero(i32x16)
        if offset:
            products = load(i32x16, x + LESS_HALF_SUMS) * offset
        products = dots(top, products, q, x, 64)
        if minima:
            total = fma(less, load(f32x16, x + HALF_SUMS), total)
        return fma(to_f32(products), d * load(f32x16, x + SCALES), total)

    @jit
    def one(t: Any, w: int, scratch: int) -> np.float32:
        total, x = zero(f32x16), t.x
        for i in range(t.k // VALUES):
            prefetch_block(w + size * i, size, AHEAD)
            total = step(total, unpacked(w + size * i), x)
            x += t.x_block
        if room and t.k % VALUES:  # Numba drops what follows where there is no room
            p = complete(w + size * (t.k // VALUES), t.k % VALUES, scratch)
            total = step(total, unpacked(p), x)
        return hsum(total)

    @jit
    def few(t: Any, w: int, rows: int, sums: int, row_bytes: int, scratch: int) -> None:
        for i in range((t.k + VALUES - 1) // VALUES):
            p, left = w + size * i, t.k - VALUES * i
            # Two rows share what is loaded of a column. The last of an odd number is its own partner: to ask
            # for it in the loop over columns makes all rows slower by a tenth.
            for r in range(0, rows, 2):
                other = p if r + 1 == rows else p + t.w_stride
                prefetch_block(p, size, rows * t.w_stride)
                prefetch_block(other, size, rows * t.w_stride)
                weights = unpacked(complete(p, left, scratch))
                weights_2 = unpacked(complete(other, left, scratch + room))
                x, to = t.x + i * t.x_block, sums + r * row_bytes
                for _ in range(t.columns):
                    total = step(load(f32x16, to), weights, x)
                    total_2 = step(load(f32x16, to + row_bytes), weights_2, x)
                    store(f32x16, total, to)
                    store(f32x16, total_2, to + row_bytes)
                    to, x = to + 64, x + COLUMN
                p += 2 * t.w_stride

    return one, few


def superblocks_dequantize(
    unpack: Any, scale: Any, size: int, n: int, values: Values, complete: Any = whole, room: int = 0
) -> Any:
    """dequantize(w, k, y) for the formats of superblocks_matmul."""
    scale = scale_and_minimum(values, scale)
    signed, offset, minima = values.largest == SIGNED, values.offset, values.minima
    lanes_0, lanes_1, lanes_2, lanes_3 = (
        Lanes([(32 * block + i) * n // 256 for block in pair for i in range(32)]) for pair in PAIRS
    )

    @jit
    def put(q: Any, d: Any, m: Any, y: int) -> None:
        q = bitcast(i8x64, q)
        floats = to_f32((sext(q) if signed else zext(q)) - offset) * d
        floats = floats - m if minima else floats
        store(_f32x32, shuffle(floats, _FIRST), y)
        store(_f32x32, shuffle(floats, _SECOND), y + 256)

    @jit
    def superblock(p: int, y: int) -> None:
        d, m = scale(p)
        q_0, q_1, q_2, q_3 = unpack(p)
        put(q_0, shuffle(d, lanes_0), shuffle(m, lanes_0), y)
        put(q_1, shuffle(d, lanes_1), shuffle(m, lanes_1), y + 128)
        put(q_2, shuffle(d, lanes_2), shuffle(m, lanes_2), y + 512)
        put(q_3, shuffle(d, lanes_3), shuffle(m, lanes_3), y + 640)

    @jit
    def dequantize(w: int, k: int, y: int) -> None:
        for i in range(k // VALUES):
            superblock(w + size * i, y + 4 * VALUES * i)
        left = k % VALUES
        if room and left:  # Numba drops what follows where there is no room
            memory, floats = np.zeros(room, np.uint8), np.empty(VALUES, np.float32)
            superblock(complete(w + size * (k // VALUES), left, address_of(memory)), address_of(floats))
            for i in range(left):
                store(f32, floats[i], y + 4 * (k - left + i))
            memory[0] = 0  # keeps it alive

    return dequantize
