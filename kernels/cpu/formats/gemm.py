"""Many columns at once: 64 rows of some values are unpacked to scratch memory, and all columns pass over it.

Every weight is read and unpacked once for all columns of a batch.
"""

from typing import Any

import numpy as np

from ..llvm_ir import ISA
from ..runtime import at, jit
from ..simd import address_of, f32x16, load, prefetch_later, store
from ..tiles import GROUPS, LINE, ROWS, STRIDE
from .rows import MATMUL

FEW = {"avx512": 3, "avx2": 5, "portable": 3}[ISA]
"""Columns, from which on unpacking for all of them is faster than for each two: measured, but for portable."""


def gemm_of(unpack_16: Any, tile: Any, shape: Any, values: int, size: int, scratch_bytes: int) -> Any:
    """matmul of 64 t rows with many columns; `size` bytes of a row are `values` values.

    unpack_16(p, stride, n, scratch, group) unpacks n of the values (fewer at the end) from 16 rows at p;
    tile(scratch, x, x_stride, k, first, n, y) adds the products of shape.groups of them from value `first` on
    with shape.columns columns to y. It may be given up to columns.ROOM columns that are none.
    """
    groups, width = shape.groups, shape.columns

    @jit
    def all_columns(t: Any, scratch: int, first: int, n: int, y: int, ahead: int, ahead_bytes: int) -> None:
        """All columns times what is unpacked, while weights from `ahead` on are fetched."""
        passes = (t.columns + width - 1) // width
        for i in range(passes):
            x, to = t.x + i * width * t.x_stride, y + i * width * STRIDE
            for group in range(0, GROUPS, groups):
                prefetch_range(ahead, ahead_bytes)
                ahead += ahead_bytes
                tile(scratch + LINE * group, x, t.x_stride, t.k, first, n, to + LINE * group)

    @jit
    def gemm(task: int) -> None:
        t = at(MATMUL, task)
        passes, blocks = (t.columns + width - 1) // width, (t.k + values - 1) // values
        memory, sums = np.empty(scratch_bytes + 64, np.uint8), np.empty(passes * width * ROWS, np.float32)
        scratch, y = address_of(memory) + 63 & ~63, address_of(sums)
        # Of the next 64 rows, with each tile as much as makes all of them at the end: in the order of memory,
        # which is not that of use, but the one that memory is fast in.
        tiles = passes * blocks * (GROUPS // groups)
        ahead_bytes = (ROWS * t.w_stride // tiles + 63) & ~63
        for row in range(0, t.rows, ROWS):
            sums[:] = 0.0
            w = t.w + row * t.w_stride
            for block in range(blocks):
                first, n = block * values, min(values, t.k - block * values)
                for group in range(GROUPS):
                    unpack_16(w + 16 * group * t.w_stride + block * size, t.w_stride, n, scratch, group)
                ahead = w + ROWS * t.w_stride + block * (tiles // blocks) * ahead_bytes
                all_columns(t, scratch, first, n, y, ahead, ahead_bytes)
            copy_panel(t, row, y)
        memory[0], sums[:1] = 0, 0.0  # keeps them alive: Numba does not see their addresses in use

    return gemm


@jit
def prefetch_range(p: int, size: int) -> None:
    """Ask for `size` bytes at p."""
    for line in range(0, size, 64):
        prefetch_later(p + line)


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
