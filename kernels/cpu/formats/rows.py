"""From the product of one row and one column to a matrix: what formats of plain floats share."""

from typing import Any

import numpy as np

from ..runtime import Struct, at, jit
from ..simd import address_of, f32, f32x16, fma, hsum, load, prefetch, store, zero

# What a matmul kernel is given: y[c, r] = row r of w . column c; strides in bytes.
MATMUL = Struct("w w_stride rows x x_stride k columns y y_stride")

AHEAD = 4096  # bytes between a load and its prefetch; found by measuring decode


# A tile of weights stays in the L2 cache while the columns pass by, a tile of columns in L1.
_ROWS, _COLUMNS = 32, 16


def matmul_of(dot: Any) -> Any:
    """All rows times all columns, from dot(row, x, k) -> float32."""

    @jit
    def tile(t: Any, row: int, column: int) -> None:
        for r in range(row, min(row + _ROWS, t.rows)):
            for c in range(column, min(column + _COLUMNS, t.columns)):
                store(f32, dot(t.w + r * t.w_stride, t.x + c * t.x_stride, t.k), t.y + c * t.y_stride + 4 * r)

    @jit
    def matmul(task: int) -> None:
        t = at(MATMUL, task)
        for row in range(0, t.rows, _ROWS):
            for column in range(0, t.columns, _COLUMNS):
                tile(t, row, column)

    return matmul


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
