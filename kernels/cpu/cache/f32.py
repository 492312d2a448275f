"""Cells of float32."""

from ..runtime import kernel
from ..simd import f32, f32x16
from . import padded
from .floats import mix_of, scores_of, unpack_of, write_of

_write, _scores, _mix = write_of(f32, 4), scores_of(f32x16, 4), mix_of(f32x16, 4)
_unpack = unpack_of(f32x16, 4)


def row_bytes(d: int) -> int:
    """The size of a row of d values."""
    return 4 * padded(d)


@kernel
def write(x: int, row: int, d: int) -> None:
    """Fill a row."""
    _write(x, row, d)


@kernel
def scores(q: int, rows: int, row_bytes: int, n: int, d: int, out: int) -> None:
    """Products of a query with n rows."""
    _scores(q, rows, row_bytes, n, d, out)


@kernel
def mix(p: int, rows: int, row_bytes: int, n: int, d: int, y: int) -> None:
    """The weighted sum of n rows."""
    _mix(p, rows, row_bytes, n, d, y)


@kernel
def unpack(rows: int, row_bytes: int, n: int, d: int, y: int) -> None:
    """n rows to floats."""
    _unpack(rows, row_bytes, n, d, y)
