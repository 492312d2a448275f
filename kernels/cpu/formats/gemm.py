"""Many columns at once: 64 rows of some values are unpacked to scratch memory, and all columns pass over it.

Every weight is read and unpacked once for all columns of a batch.
"""

from typing import Any

import numpy as np

from ..runtime import at, jit
from ..simd import address_of, f32x16, load, prefetch, store
from ..tiles import GROUPS, LINE, ROWS, STRIDE
from .rows import MATMUL

FEW = 3  # columns, from which on unpacking for all of them is faster than one by one: measured


def gemm_of(unpack_16: Any, tile: Any, shape: Any, values: int, size: int, scratch_bytes: int) -> Any:
    """matmul of 64 t rows with many columns; `size` bytes of a row are `values` values.

    unpack_16(p, stride, n, scratch, group) unpacks n of the values (fewer at the end) from 16 rows at p;
    tile(scratch, x, x_stride, k, first, n, y) adds the products of shape.groups of them from value `first` on
    with shape.columns columns to y. It may be given up to columns.ROOM columns that are none.
    """
    groups, width = shape.groups, shape.columns

    @jit
    def all_columns(t: Any, scratch: int, first: int, n: int, upcoming: int, y: int) -> None:
        """All columns times what is unpacked, while the weights that come next are fetched."""
        passes = (t.columns + width - 1) // width
        rows = (ROWS + passes - 1) // passes
        for i in range(passes):
            prefetch_rows(upcoming + i * rows * t.w_stride, t.w_stride, rows, size)
            x, to = t.x + i * width * t.x_stride, y + i * width * STRIDE
            for group in range(0, GROUPS, groups):
                tile(scratch + LINE * group, x, t.x_stride, t.k, first, n, to + LINE * group)

    @jit
    def gemm(task: int) -> None:
        t = at(MATMUL, task)
        memory = np.empty(scratch_bytes + 64, np.uint8)
        sums = np.empty((t.columns + width - 1) // width * width * ROWS, np.float32)
        scratch, y = address_of(memory) + 63 & ~63, address_of(sums)
        for row in range(0, t.rows, ROWS):
            sums[:] = 0.0
            w = t.w + row * t.w_stride
            for first in range(0, t.k, values):
                p, n = w + first // values * size, min(values, t.k - first)
                for group in range(GROUPS):
                    unpack_16(p + 16 * group * t.w_stride, t.w_stride, n, scratch, group)
                upcoming = p + size if first + values < t.k else w + ROWS * t.w_stride
                all_columns(t, scratch, first, n, upcoming, y)
            copy_panel(t, row, y)
        memory[0], sums[:1] = 0, 0.0  # keeps them alive: Numba does not see their addresses in use

    return gemm


@jit
def prefetch_rows(p: int, stride: int, rows: int, size: int) -> None:
    """Ask for the first `size` bytes of some rows."""
    for r in range(rows):
        for line in range(0, size, 64):
            prefetch(p + r * stride + line)


@jit
def copy_panel(t: Any, row: int, sums: int) -> None:
    """Sums of 64 rows, [column, row], to their places in y."""
    for c in range(t.columns):
        for r in range(0, ROWS, 16):
            store(f32x16, load(f32x16, sums + 4 * (ROWS * c + r)), t.y + c * t.y_stride + 4 * (row + r))


def few_or_many(few: Any, gemm: Any) -> Any:
    """matmul: by `few` for few columns, and for rows that make no 64; else by gemm."""

    @jit
    def matmul(task: int) -> None:
        t = at(MATMUL, task)
        rows = t.rows
        if t.columns >= FEW:
            t.rows = rows // ROWS * ROWS
            gemm(task)
            t.w, t.y, t.rows = t.w + t.rows * t.w_stride, t.y + 4 * t.rows, rows - t.rows
        few(task)

    return matmul
