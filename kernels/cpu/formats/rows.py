"""From the product of some rows and columns to a matrix."""

from typing import Any

import numpy as np

from ..runtime import Struct, at, jit
from ..simd import address_of, f32, f32x16, hsum, load, prefetch, store, zero

MATMUL = Struct("w w_stride rows x x_stride x_block k columns y y_stride")
"""What a matmul kernel is given: y[c, r] = row r of w . column c; strides in bytes.

x_block: from 256 values of a column to the next 256. Float columns lie together: it is 1024 there.
"""

AHEAD = 8192  # bytes between a load and its prefetch; found by measuring decode

MANY = 20
"""Columns from which on the tiles of `gemm` are faster than `few`: measured."""

_ROWS = 8
"""Rows that share what is loaded of many columns into the L1 cache. With more, prefetches come too early."""


@jit
def prefetch_block(p: int, size: int, ahead: int) -> None:
    """Ask for what lies `ahead` of the `size` bytes at p."""
    for line in range(0, size, 64):
        prefetch(p + ahead + line)


def matmul_of(one: Any, few: Any, gemm: Any, width: int, room: int = 0) -> Any:
    """matmul by the product of a row with one column; of few rows with few columns; of 64 t rows with many.

    one(t, w, scratch) -> float32: row w times the column t.x.
    few(t, w, rows, sums, row_bytes, scratch): f32x16 vectors sums[row, column] += vectors whose lanes, added
    up, are the product; it may take up to `width` columns, and sums, that are none.
    gemm(task): a matmul. scratch: `room` bytes, which are zero at first.
    """

    @jit
    def one_column(t: Any) -> None:
        memory = np.zeros(room + 1, np.uint8)
        for r in range(t.rows):
            store(f32, one(t, t.w + r * t.w_stride, address_of(memory)), t.y + 4 * r)
        memory[0] = 0  # keeps it alive: Numba does not see its address in use

    @jit
    def few_columns(t: Any) -> None:
        columns = (t.columns + width - 1) // width * width
        memory, scratch = np.empty(_ROWS * columns * 16 + 16, np.float32), np.zeros(room + 1, np.uint8)
        sums = address_of(memory) + 63 & ~63
        for row in range(0, t.rows, _ROWS):
            rows = min(_ROWS, t.rows - row)
            for i in range(rows * columns):
                store(f32x16, zero(f32x16), sums + 64 * i)
            few(t, t.w + row * t.w_stride, rows, sums, 64 * columns, address_of(scratch))
            for r in range(rows):
                for c in range(t.columns):
                    total = hsum(load(f32x16, sums + 64 * (r * columns + c)))
                    store(f32, total, t.y + c * t.y_stride + 4 * (row + r))
        memory[0], scratch[0] = 0.0, 0  # keeps them alive

    @jit
    def matmul(task: int) -> None:
        t = at(MATMUL, task)
        if t.columns >= MANY:
            gemm(task)  # leaves the rows that make no 64
        if t.columns == 1:
            one_column(t)
        else:
            few_columns(t)

    return matmul
