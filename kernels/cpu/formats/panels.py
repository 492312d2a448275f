"""Panels of quantized weights: what 64 rows of 256 values are unpacked to, and its product with columns.

A panel fits the L1 cache: the bytes as tiles.py wants them, and the scales and minima of each sub-block, a
lane a row. Formats give the same `unpack` and `scale` as for one column.
"""

from typing import Any

from ..columns import half_sums_at, scales_at, sums_at
from ..runtime import jit
from ..simd import f32x16, i32x16
from ..tiles import (
    BYTES_TILE,
    LINE,
    STRIDE,
    Quads,
    Shape,
    tile_add,
    tile_dot,
    tile_scale,
    tile_subtract,
    tile_zero,
    transpose,
)
from .gemm import gemm_of

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


def _tile_of(shape: Shape, n: int, minima: bool) -> Any:
    """256 values of some groups of rows in scratch memory times shape.columns columns, added to y."""
    quads, sums_of, a_scale = Quads(64 // n), (sums_at if n == 8 else half_sums_at), n // 8

    @jit
    def tile(scratch: int, x: int, x_stride: int, k: int, first: int, values: int, y: int) -> None:
        scales, sums = scales_at(x, k) + first // 8, sums_of(x, k) + 4 * (first * n // 256)
        total = tile_zero(shape, f32x16)
        for i in range(values * n // 256):
            products = tile_zero(shape, i32x16)
            w, q = scratch + STRIDE * (64 // n) * i, x + first + 256 // n * i
            products = tile_dot(shape, products, w, q, x_stride, quads)
            d, m = scratch + SCALES + STRIDE * i, scratch + MINIMA + STRIDE * i
            total = tile_scale(shape, total, products, d, scales + 4 * (i // a_scale), x_stride)
            if minima:
                total = tile_subtract(shape, total, m, sums + 4 * i, x_stride)
        tile_add(shape, total, y, STRIDE)

    return tile


def panels_gemm(unpack_16: Any, size: int, n: int, largest: int, minima: bool) -> Any:
    """gemm for formats of which `size` bytes are 256 values in n sub-blocks (see gemm_of)."""
    shape = Shape(*BYTES_TILE, largest)
    return gemm_of(unpack_16, _tile_of(shape, n, minima), shape, 256, size, _SCRATCH)
