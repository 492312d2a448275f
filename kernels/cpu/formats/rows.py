"""From the product of one row and one column to a matrix."""

from typing import Any

from ..runtime import Struct, at, jit
from ..simd import f32, prefetch, store

# What a matmul kernel is given: y[c, r] = row r of w . column c; strides in bytes.
MATMUL = Struct("w w_stride rows x x_stride k columns y y_stride")

AHEAD = 4096  # bytes between a load and its prefetch; found by measuring decode


# A tile of weights stays in the L2 cache while the columns pass by, a tile of columns in L1.
_ROWS, _COLUMNS = 32, 16


@jit
def prefetch_block(p: int, size: int) -> None:
    """Ask for what lies AHEAD of the `size` bytes at p."""
    for line in range(0, size, 64):
        prefetch(p + AHEAD + line)


def matmul_of(dot: Any, two_dots: Any) -> Any:
    """All rows times all columns, from dot(row, x, k) -> float32, and the same for two columns at once."""

    @jit
    def tile(t: Any, row: int, column: int) -> None:
        end = min(column + _COLUMNS, t.columns)
        for r in range(row, min(row + _ROWS, t.rows)):
            w = t.w + r * t.w_stride
            for c in range(column, end - 1, 2):
                x, y = t.x + c * t.x_stride, t.y + c * t.y_stride + 4 * r
                first, second = two_dots(w, x, x + t.x_stride, t.k)
                store(f32, first, y)
                store(f32, second, y + t.y_stride)
            if (end - column) % 2:
                c = end - 1
                store(f32, dot(w, t.x + c * t.x_stride, t.k), t.y + c * t.y_stride + 4 * r)

    @jit
    def matmul(task: int) -> None:
        t = at(MATMUL, task)
        for row in range(0, t.rows, _ROWS):
            for column in range(0, t.columns, _COLUMNS):
                tile(t, row, column)

    return matmul
