"""Products in float32: for plain floats, and for formats that are unpacked to them."""

from typing import Any

import numpy as np

from ..columns import VALUES
from ..runtime import jit
from ..simd import address_of, f32, f32x16, fma, hsum, load, prefetch, store, zero
from ..tiles import (
    FLOATS_TILE,
    LINE,
    STRIDE,
    Number,
    Shape,
    tile_dots,
    tile_fma,
    tile_load,
    tile_store,
    transpose,
)
from .gemm import gemm_of
from .rows import AHEAD, matmul_of, prefetch_block

_SHAPE = Shape(*FLOATS_TILE)
_SIXTEEN = Number(16)
_WIDTH = 8
"""Columns that share a row's values: as many sums as hide how long each takes."""
_DOTS = Shape(1, _WIDTH)
_DEPTH = 64  # values of a row of plain floats at once: 64 rows of them are half of an L1 cache


def floats_matmul(vector: Any, scalar: Any, size: int) -> Any:
    """matmul for plain floats: of a Kind of 16, its scalar, and the bytes of one."""
    gemm = _gemm_of(floats_dequantize(vector, scalar, size), _DEPTH, _DEPTH * size)
    return matmul_of(_one_of(vector, scalar, size), _few_of(vector, scalar, size), gemm, _WIDTH)


def floats_dequantize(vector: Any, scalar: Any, size: int) -> Any:
    """dequantize(w, k, y) for the formats of floats_matmul."""

    @jit
    def dequantize(w: int, k: int, y: int) -> None:
        whole = k // 16 * 16
        for i in range(0, whole, 16):
            store(f32x16, load(vector, w + size * i), y + 4 * i)
        for i in range(whole, k):
            store(f32, load(scalar, w + size * i), y + 4 * i)

    return dequantize


def dequantized_matmul(dequantize: Any, size: int) -> Any:
    """matmul by dequantize(w, k, y), for formats of which `size` bytes are 256 values."""
    one_float, few_floats = _one_of(f32x16, f32, 4, 0), _few_of(f32x16, f32, 4)

    @jit
    def one(t: Any, w: int, scratch: int) -> np.float32:
        memory = np.empty(t.k, np.float32)
        prefetch_block(w, t.w_stride, t.w_stride)
        dequantize(w, t.k, address_of(memory))
        total = one_float(t, address_of(memory), scratch)
        memory[0] = 0.0  # keeps it alive: Numba does not see its address in use
        return total

    @jit
    def few(t: Any, w: int, rows: int, sums: int, row_bytes: int, scratch: int) -> None:
        memory = np.empty(t.k, np.float32)
        for r in range(rows):
            prefetch_block(w + r * t.w_stride, t.w_stride, t.w_stride)
            dequantize(w + r * t.w_stride, t.k, address_of(memory))
            few_floats(t, address_of(memory), 1, sums + r * row_bytes, row_bytes, scratch)
        memory[0] = 0.0  # keeps it alive

    return matmul_of(one, few, _gemm_of(dequantize, 256, size), _WIDTH)


def _one_of(vector: Any, scalar: Any, size: int, ahead: int = AHEAD) -> Any:
    """one for matmul_of; see floats_matmul. ahead: how far weights are asked for, 0 where they lie in L1."""

    @jit
    def one(t: Any, w: int, scratch: int) -> np.float32:
        total, total_2, x = zero(f32x16), zero(f32x16), t.x
        for i in range(0, t.k - 31, 32):
            if ahead:
                prefetch(w + size * i + ahead)
            total = fma(load(vector, w + size * i), load(f32x16, x + 4 * i), total)
            total_2 = fma(load(vector, w + size * (i + 16)), load(f32x16, x + 4 * i + 64), total_2)
        result = hsum(total + total_2)
        for i in range(t.k // 32 * 32, t.k):
            result += load(scalar, w + size * i) * load(f32, x + 4 * i)
        return result

    return one


def _few_of(vector: Any, scalar: Any, size: int) -> Any:
    """few for matmul_of; see floats_matmul. A row's values are widened once for _WIDTH columns."""

    @jit
    def whole_lines(t: Any, w: int, first: int, end: int, x: int, sums: int) -> None:
        total = tile_load(_DOTS, sums, 64)
        for i in range(first, end, 16):
            total = tile_dots(_DOTS, total, load(vector, w + size * i), x + 4 * i, t.x_stride)
        tile_store(_DOTS, total, sums, 64)

    @jit
    def rest(t: Any, w: int, x: int, sums: int) -> None:
        """What makes no 16 values: of the columns that there are, to their first lanes."""
        for i in range(t.k // 16 * 16, t.k):
            value = load(scalar, w + size * i)
            for c in range(min(_WIDTH, t.columns - (x - t.x) // t.x_stride)):
                product = value * load(f32, x + c * t.x_stride + 4 * i)
                store(f32, load(f32, sums + 64 * c) + product, sums + 64 * c)

    @jit
    def few(t: Any, w: int, rows: int, sums: int, row_bytes: int, scratch: int) -> None:
        for first in range(0, t.k, VALUES):
            end, to = min(first + VALUES, t.k // 16 * 16), sums
            for r in range(rows):
                p = w + r * t.w_stride
                prefetch_block(p + size * first, size * VALUES, rows * t.w_stride)
                for c in range(0, t.columns, _WIDTH):
                    x = t.x + c * t.x_stride
                    whole_lines(t, p, first, end, x, to)
                    if first + VALUES >= t.k:
                        rest(t, p, x, to)
                    to += 64 * _WIDTH

    return few


def _gemm_of(dequantize: Any, values: int, size: int) -> Any:
    """gemm by dequantize(w, k, y); `size` bytes are `values` values (see gemm_of)."""
    raw = values * STRIDE  # where 16 rows are unpacked to, after the panel [value, row]

    @jit
    def unpack_16(p: int, stride: int, n: int, scratch: int, group: int) -> None:
        for r in range(16):
            dequantize(p + r * stride, n, scratch + raw + 4 * values * r)
        for i in range(0, n, 16):
            source, target = scratch + raw + 4 * i, scratch + i * STRIDE + LINE * group
            transpose(source, 4 * values, target, STRIDE, _SIXTEEN)

    @jit
    def tile(total: Any, scratch: int, x: int, x_stride: int, n: int) -> Any:
        for i in range(n):
            total = tile_fma(_SHAPE, total, scratch + STRIDE * i, x + 4 * i, x_stride)
        return total

    return gemm_of(unpack_16, tile, _SHAPE, values, size, raw + 16 * 4 * values)
