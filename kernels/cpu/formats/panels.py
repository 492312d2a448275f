"""Panels of quantized weights: what 64 rows of 256 values are unpacked to, and its product with columns.

A panel fits the L1 cache: the bytes as tiles.py wants them, and the scales and minima of each sub-block, a
lane a row. Formats give the same `unpack` and `scale` as for one column.
"""

from typing import Any

from ..columns import HALF_SUMS, HALVES, LESS_HALF_SUMS, LESS_SUMS, SCALES, SUMS, VALUES, bytes_of, lane
from ..columns import SIZE as COLUMN
from ..kinds import Kind
from ..runtime import jit
from ..simd import i32x16, store, unknown
from ..tiles import (
    BYTES_TILE,
    HALVES_TILE,
    LINE,
    STRIDE,
    Number,
    Shape,
    tile_dot,
    tile_scale,
    tile_scale_two,
    tile_start,
    tile_subtract,
    transpose,
)
from .gemm import gemm_of
from .values import Values

# The scratch memory, in bytes: bytes of weights, scales, minima; then what transposes read from.
_D = 64 * STRIDE
_M = _D + 16 * STRIDE
_RAW = _M + 16 * STRIDE
_RAW_D = _RAW + 4 * 16 * LINE
_RAW_M = _RAW_D + 16 * LINE
_COMPLETE = _RAW_M + 16 * LINE
_SIXTEEN = Number(16)
_NEXT = 4 * (HALVES.index(1) - HALVES.index(0))  # from a half of a block to the other, in a column


def panels_gemm(unpack: Any, scale: Any, size: int, n: int, values: Values, complete: Any, room: int) -> Any:
    """gemm for superblocks_matmul: scale(p) -> (d, m)."""
    shape = Shape(*(BYTES_TILE if n == 8 else HALVES_TILE), values.largest)
    tile = (_blocks_tile if n == 8 else _halves_tile)(shape, values)
    unpack_16 = _unpack_16(unpack, scale, n, values.minima, complete)
    return gemm_of(unpack_16, tile, shape, VALUES, size, _COMPLETE + room)


def _unpack_16(unpack: Any, scale: Any, n: int, minima: bool, complete: Any) -> Any:
    """unpack_16 for gemm_of."""
    kind, count = Kind("f32", n), Number(n)

    @jit
    def unpack_16(p: int, stride: int, values: int, scratch: int, group: int) -> None:
        for r in range(16):
            row = complete(p + r * stride, values, scratch + _COMPLETE)
            q_0, q_1, q_2, q_3 = unpack(row)
            raw = scratch + _RAW + LINE * r
            store(i32x16, q_0, raw)
            store(i32x16, q_1, raw + 16 * LINE)
            store(i32x16, q_2, raw + 32 * LINE)
            store(i32x16, q_3, raw + 48 * LINE)
            d, m = scale(row)
            store(kind, d, scratch + _RAW_D + LINE * r)
            if minima:
                store(kind, m, scratch + _RAW_M + LINE * r)
        to = scratch + LINE * group
        for quarter in range(4):
            source, target = scratch + _RAW + 16 * LINE * quarter, to + 16 * STRIDE * quarter
            transpose(source, LINE, target, STRIDE, _SIXTEEN)
        transpose(scratch + _RAW_D, LINE, to + _D, STRIDE, count)
        if minima:
            transpose(scratch + _RAW_M, LINE, to + _M, STRIDE, count)

    return unpack_16


@jit
def _weights_of(scratch: int, half: int) -> int:
    """Where a half of a block begins: the two inner blocks of each four have changed places."""
    return scratch + 4 * STRIDE * (half & 9 | (half & 2) << 1 | (half & 4) >> 1)


def _blocks_tile(shape: Shape, v: Values) -> Any:
    """tile for gemm_of, of 8 sub-blocks."""
    quads, offset, minima = Number(8), Number(v.offset), v.minima

    @jit
    def tile(total: Any, scratch: int, x: int, x_stride: int, values: int) -> Any:
        for block in range(8):
            w, row = _weights_of(scratch, 2 * block), scratch + STRIDE * block
            products = tile_start(shape, offset, x + LESS_SUMS + 4 * block, COLUMN)
            products = tile_dot(shape, products, w, bytes_of(x, 2 * block), COLUMN, quads)
            total = tile_scale(shape, total, products, row + _D, x + SCALES + 4 * lane(2 * block), COLUMN)
            if minima:
                total = tile_subtract(shape, total, row + _M, x + SUMS + 4 * block, COLUMN)
        return total

    return tile


def _halves_tile(shape: Shape, v: Values) -> Any:
    """tile for gemm_of, of 16 sub-blocks: two halves of a block share a scale of the column."""
    quads, offset, minima = Number(4), Number(v.offset), v.minima

    @jit
    def tile(total: Any, scratch: int, x: int, x_stride: int, values: int) -> Any:
        for half in range(0, unknown(16), 2):
            w, q = _weights_of(scratch, half), bytes_of(x, half)
            row, s = scratch + STRIDE * half, x + 4 * lane(half)
            # The other half's bytes of a column are _NEXT further; LLVM would not inline a function for both.
            first = tile_start(shape, offset, s + LESS_HALF_SUMS, COLUMN)
            first = tile_dot(shape, first, w, q, COLUMN, quads)
            second = tile_start(shape, offset, s + LESS_HALF_SUMS + _NEXT, COLUMN)
            second = tile_dot(shape, second, w + 4 * STRIDE, q + _NEXT, COLUMN, quads)
            total = tile_scale_two(shape, total, first, second, row + _D, s + SCALES, COLUMN)
            if minima:
                total = tile_subtract(shape, total, row + _M, s + HALF_SUMS, COLUMN)
                total = tile_subtract(shape, total, row + _M + STRIDE, s + HALF_SUMS + _NEXT, COLUMN)
        return total

    return tile
