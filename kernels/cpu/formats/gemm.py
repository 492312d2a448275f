"""Many columns at once: 64 rows of some values are unpacked to scratch memory, and all columns pass over it.

Every weight is read and unpacked once for all columns of a batch.
"""

from typing import Any

import numpy as np

from ..columns import VALUES
from ..runtime import at, jit
from ..simd import address_of, f32x16, load, prefetch_later, store
from ..tiles import GROUPS, LINE, ROWS, STRIDE, tile_load, tile_store
from .rows import MATMUL


def gemm_of(unpack_16: Any, tile: Any, shape: Any, values: int, size: int, scratch_bytes: int) -> Any:
    """gemm(task): 64 t rows of MATMUL times its columns. The task has the rows that are left, afterwards.

    unpack_16(p, stride, n, scratch, group) unpacks `values` values, `size` bytes, from 16 rows at p, of which
    only n may be there; tile(total, scratch, x, x_stride, n) -> total + the products of shape.groups of them
    with shape.columns columns. It may be given up to columns.ROOM columns that are none.
    """
    groups, width = shape.groups, shape.columns

    @jit
    def all_columns(t: Any, scratch: int, block: int, n: int, y: int, ahead: int, ahead_bytes: int) -> None:
        """All columns times what is unpacked, while weights from `ahead` on are fetched."""
        x = t.x + block * (t.x_block * values // VALUES)
        for _ in range(0, t.columns, width):
            for group in range(0, GROUPS, groups):
                prefetch_range(ahead, ahead_bytes)
                ahead += ahead_bytes
                to = y + LINE * group
                total = tile(tile_load(shape, to, STRIDE), scratch + LINE * group, x, t.x_stride, n)
                tile_store(shape, total, to, STRIDE)
            x, y = x + width * t.x_stride, y + width * STRIDE

    @jit
    def gemm(task: int) -> None:
        t = at(MATMUL, task)
        if t.rows < ROWS:
            return
        passes, blocks = (t.columns + width - 1) // width, (t.k + values - 1) // values
        memory, sums = np.zeros(scratch_bytes + 64, np.uint8), np.empty(passes * width * ROWS, np.float32)
        scratch, y = address_of(memory) + 63 & ~63, address_of(sums)
        # Of the next 64 rows, with each tile as much as makes all of them at the end: in the order of memory,
        # which is not that of use, but the one that memory is fast in.
        tiles = passes * blocks * (GROUPS // groups)
        ahead_bytes = (ROWS * t.w_stride // tiles + 63) & ~63
        for row in range(0, t.rows - ROWS + 1, ROWS):
            sums[:] = 0.0
            w = t.w + row * t.w_stride
            for block in range(blocks):
                n = min(values, t.k - block * values)
                for group in range(GROUPS):
                    unpack_16(w + 16 * group * t.w_stride + block * size, t.w_stride, n, scratch, group)
                ahead = w + ROWS * t.w_stride + block * (tiles // blocks) * ahead_bytes
                all_columns(t, scratch, block, n, y, ahead, ahead_bytes)
            copy_panel(t, row, y)
        memory[0], sums[:1] = 0, 0.0  # keeps them alive: Numba does not see their addresses in use
        done = t.rows // ROWS * ROWS
        t.w, t.y, t.rows = t.w + done * t.w_stride, t.y + 4 * done, t.rows - done

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
