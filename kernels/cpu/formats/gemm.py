"""Many columns at once: 64 rows of 256 values are unpacked, and all columns pass over them.

What is unpacked fits the L1 cache: the bytes as tiles.py wants them, and the scales and minima of each
sub-block, a lane a row. Formats give the same `unpack` and `scale` as for one column.
"""

from typing import Any

import numpy as np

from ..columns import half_sums_at, scales_at, sums_at
from ..runtime import at, jit
from ..simd import address_of, f32x16, i32x16, load, store
from ..tiles import LINE, Quads, Shape, tile_add, tile_dot, tile_scale, tile_subtract, tile_zero, transpose
from .rows import MATMUL, matmul_of

GROUPS = 4
ROWS = 16 * GROUPS
STRIDE = LINE * GROUPS  # of one quad (or one sub-block's scales) of all rows
_COLUMNS = 3
FEW = 3  # columns, from which on unpacking for all of them is faster than one by one: measured
# The scratch memory, in bytes: bytes of weights, scales, minima; then what transposes read from.
SCALES = 64 * STRIDE
MINIMA = SCALES + 16 * STRIDE
RAW = MINIMA + 16 * STRIDE
RAW_SCALES = RAW + 4 * 16 * LINE
RAW_MINIMA = RAW_SCALES + 16 * LINE + LINE
_SCRATCH = RAW_MINIMA + 16 * LINE + LINE
_SIXTEEN = Quads(16)


@jit
def transpose_bytes(scratch: int, group: int) -> None:
    """RAW, four times 16 rows of 64 bytes, to a group's quads."""
    for quarter in range(4):
        source, target = RAW + 16 * LINE * quarter, LINE * group + 16 * STRIDE * quarter
        transpose(scratch + source, LINE, scratch + target, STRIDE, _SIXTEEN)


def scales_transposer(n: int) -> Any:
    """RAW_SCALES and RAW_MINIMA, 16 rows of n floats, to a group's."""
    count = Quads(n)

    @jit
    def transpose_scales(scratch: int, group: int) -> None:
        to = scratch + LINE * group
        transpose(scratch + RAW_SCALES, LINE, to + SCALES, STRIDE, count)
        transpose(scratch + RAW_MINIMA, LINE, to + MINIMA, STRIDE, count)

    return transpose_scales


def _tile_of(shape: Shape, n: int) -> Any:
    """256 values of 64 rows in scratch memory times shape.columns columns, added to y."""
    quads, sums_of, a_scale = Quads(64 // n), (sums_at if n == 8 else half_sums_at), n // 8

    @jit
    def tile(scratch: int, x: int, x_stride: int, k: int, first: int, y: int) -> None:
        scales, sums = scales_at(x, k) + first // 8, sums_of(x, k) + 4 * (first * n // 256)
        total = tile_zero(shape, f32x16)
        for i in range(min(n, (k - first) * n // 256)):
            products = tile_zero(shape, i32x16)
            w, q = scratch + STRIDE * (64 // n) * i, x + first + 256 // n * i
            products = tile_dot(shape, products, w, q, x_stride, quads)
            d, m = scratch + SCALES + STRIDE * i, scratch + MINIMA + STRIDE * i
            total = tile_scale(shape, total, products, d, scales + 4 * (i // a_scale), x_stride)
            total = tile_subtract(shape, total, m, sums + 4 * i, x_stride)
        tile_add(shape, total, y, STRIDE)

    return tile


def gemm_of(unpack_16: Any, size: int, n: int, full: bool) -> Any:
    """matmul of 64 t rows with many columns; `size` bytes are 256 values in n sub-blocks.

    unpack_16(p, stride, blocks, scratch, group) unpacks the first `blocks` blocks of 32 from 16 rows at p.
    """
    tile, narrow = _tile_of(Shape(GROUPS, _COLUMNS, full), n), _tile_of(Shape(GROUPS, 1, full), n)

    @jit
    def columns_pass(t: Any, scratch: int, first: int, y: int) -> None:
        whole = t.columns // _COLUMNS * _COLUMNS
        for c in range(0, whole, _COLUMNS):
            tile(scratch, t.x + c * t.x_stride, t.x_stride, t.k, first, y + c * STRIDE)
        for c in range(whole, t.columns):
            narrow(scratch, t.x + c * t.x_stride, t.x_stride, t.k, first, y + c * STRIDE)

    @jit
    def gemm(task: int) -> None:
        t = at(MATMUL, task)
        memory, sums = np.empty(_SCRATCH + 64, np.uint8), np.empty(t.columns * ROWS, np.float32)
        scratch, y = address_of(memory) + 63 & ~63, address_of(sums)
        for row in range(0, t.rows, ROWS):
            sums[:] = 0.0
            for first in range(0, t.k, 256):
                for group in range(GROUPS):
                    p = t.w + (row + 16 * group) * t.w_stride + first // 256 * size
                    unpack_16(p, t.w_stride, min(8, (t.k - first) // 32), scratch, group)
                columns_pass(t, scratch, first, y)
            for c in range(t.columns):
                for r in range(0, ROWS, 16):
                    store(f32x16, load(f32x16, y + 4 * (ROWS * c + r)), t.y + c * t.y_stride + 4 * (row + r))
        memory[0], sums[:1] = 0, 0.0  # keeps them alive: Numba does not see their addresses in use

    return gemm


def few_or_many(dot: Any, gemm: Any) -> Any:
    """matmul: for few columns, and for rows that make no 64, by dot(row, x, k); else by gemm."""
    by_dot = matmul_of(dot)

    @jit
    def matmul(task: int) -> None:
        t = at(MATMUL, task)
        rows = t.rows
        if t.columns >= FEW:
            t.rows = rows // ROWS * ROWS
            gemm(task)
            t.w, t.y, t.rows = t.w + t.rows * t.w_stride, t.y + 4 * t.rows, rows - t.rows
        by_dot(task)

    return matmul
