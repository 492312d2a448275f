"""Products in float32: for plain floats, and for formats that are unpacked to them."""

from typing import Any

import numpy as np

from ..runtime import at, jit
from ..simd import address_of, f32, f32x16, fma, hsum, load, prefetch, store, zero
from ..tiles import FLOATS_TILE, LINE, STRIDE, Quads, Shape, tile_add, tile_fma, tile_zero, transpose
from .gemm import few_or_many, gemm_of
from .rows import AHEAD, MATMUL, matmul_of

_SHAPE = Shape(*FLOATS_TILE)
_SIXTEEN = Quads(16)
_DEPTH = 64  # values of a row of plain floats at once: 64 rows of them are half of an L1 cache


def floats_matmul(vector: Any, scalar: Any, size: int) -> Any:
    """matmul for plain floats: of a Kind of 16, its scalar, and the bytes of one."""
    gemm = _gemm_of(floats_dequantize(vector, scalar, size), _DEPTH, _DEPTH * size)
    few = matmul_of(_dot_of(vector, scalar, size), _two_dots_of(vector, scalar, size))
    return few_or_many(few, gemm)


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
    return few_or_many(_row_by_row(dequantize), _gemm_of(dequantize, 256, size))


def _dot_of(vector: Any, scalar: Any, size: int) -> Any:
    """dot(row, x, k) -> float32; see floats_matmul."""

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


def _two_dots_of(vector: Any, scalar: Any, size: int) -> Any:
    """The same for two columns, which share the loads of the row."""

    @jit
    def two_dots(w: int, x: int, x_2: int, k: int) -> tuple[np.float32, np.float32]:
        total, total_2 = zero(f32x16), zero(f32x16)
        for i in range(0, k - 15, 16):
            prefetch(w + size * i + AHEAD)
            row = load(vector, w + size * i)
            total = fma(row, load(f32x16, x + 4 * i), total)
            total_2 = fma(row, load(f32x16, x_2 + 4 * i), total_2)
        result, result_2 = hsum(total), hsum(total_2)
        for i in range(k // 16 * 16, k):
            value = load(scalar, w + size * i)
            result += value * load(f32, x + 4 * i)
            result_2 += value * load(f32, x_2 + 4 * i)
        return result, result_2

    return two_dots


_dot_f32 = _dot_of(f32x16, f32, 4)


def _row_by_row(dequantize: Any) -> Any:
    """matmul for few columns: every row is unpacked, and meets all of them."""

    @jit
    def matmul(task: int) -> None:
        t = at(MATMUL, task)
        scratch = np.empty(t.k, np.float32)
        row = address_of(scratch)
        for r in range(t.rows):
            dequantize(t.w + r * t.w_stride, t.k, row)
            for c in range(t.columns):
                store(f32, _dot_f32(row, t.x + c * t.x_stride, t.k), t.y + c * t.y_stride + 4 * r)
        # Numba frees an array after its last use that it can see, and it cannot see addresses.
        scratch[0] = 0.0

    return matmul


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
    def tile(scratch: int, x: int, x_stride: int, k: int, first: int, n: int, y: int) -> None:
        total = tile_zero(_SHAPE, f32x16)
        for i in range(n):
            total = tile_fma(_SHAPE, total, scratch + STRIDE * i, x + 4 * (first + i), x_stride)
        tile_add(_SHAPE, total, y, STRIDE)

    return gemm_of(unpack_16, tile, _SHAPE, values, size, raw + 16 * 4 * values)
