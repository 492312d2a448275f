"""How the CUDA kernels of decoding are compiled and launched: macros, grids and blocks.

A kernel's grid and block follow from sizes that the host knows, so a recorded pass is launched the same way
each time; grids are never empty, kernels do nothing when there is nothing to do.
"""

from collections.abc import Sequence

from ggrun.devices.cuda.grids import WARP, Shape
from ggrun.kernels.code_books import format_defines

WIDTHS = (1, 4, 8)
"""The numbers of columns that matvec.cu is compiled for; fewer than these cost no work, only registers."""
FLOATS = ("F32", "F16", "BF16")
"""Formats that are multiplied with rows of floats; all others want quantized columns."""

_TEAM_WARPS = 4
"""Warps of a block, of which each has rows of its own or shares them."""
_MOST_SPLIT = 8
_STRETCH = 2048
"""Values of a row that a warp takes at once, about: with fewer left to each, sharing a row gains nothing."""
_BUSY = 32
"""Warps that keep a multiprocessor busy: rows are shared for as long as there are fewer. Half as many do
where each asks for more at once."""
_FOUR_ROWS = ("Q4_K", "Q5_K")
"""Formats of which a warp takes four rows with one column, too: their units leave registers for that."""
_QUANTIZED = 1024
"""Values that a block of `quantize` takes."""
_NORM_THREADS = 512
_DEQUANTIZED, _DEQUANTIZE_THREADS = 4096, 128
"""Values and threads of a block of `dequantize` and `embed`."""


def width_for(columns: int) -> int:
    """The number of columns that matvec.cu must be compiled for, to multiply with so many."""
    return next((width for width in WIDTHS if width >= columns), WIDTHS[-1])


def matvec_defines(name: str, columns: int) -> dict[str, str | int]:
    """What matvec.cu is compiled with, for weights of a format and so many columns."""
    width = width_for(columns)
    return {**format_defines(name), "COLUMNS": width, "ROWS": _rows(name, width)}


def matvec_shape(
    name: str, rows: int, k: int, columns: int, multiprocessors: int, matrices: int = 1
) -> Shape:
    """For `matvec` and, of two matrices, `matvec_swiglu`: rows of k values times all columns."""
    return merged_shape(name, [rows * matrices], k, columns, multiprocessors)


def merged_shape(name: str, rows: Sequence[int], k: int, columns: int, multiprocessors: int) -> Shape:
    """For `matvec_merged`: of matrices with so many rows each; no warp has rows of two of them."""
    width = width_for(columns)
    teams = sum(-(-count // _rows(name, width)) for count in rows)
    return _teams(teams, k, -(-columns // width), multiprocessors * _busy(name, width))


def experts_shape(name: str, rows: int, k: int, pairs: int, multiprocessors: int, matrices: int = 1) -> Shape:
    """For `matvec_experts` and `matvec_experts_swiglu`, compiled for one column: one a pair."""
    teams = -(-rows * matrices // _rows(name, 1))
    return _teams(teams, k, pairs, multiprocessors * _busy(name, 1))


def quantize_shape(k: int, n: int) -> Shape:
    """For `quantize`: n rows of k values."""
    return Shape((max(1, -(-n * k // _QUANTIZED)),), (_QUANTIZED // 4,))


def norm_quantize_shape(n: int) -> Shape:
    """For `rms_norm_quantize`: n rows."""
    return Shape((max(1, n),), (_NORM_THREADS,))


def dequantize_shape(count: int) -> Shape:
    """For `dequantize`: so many values."""
    return Shape((max(1, -(-count // _DEQUANTIZED)),), (_DEQUANTIZE_THREADS,))


def embed_shape(k: int, n: int) -> Shape:
    """For `embed`: n rows of k values."""
    return Shape((max(1, n), -(-k // _DEQUANTIZED)), (_DEQUANTIZE_THREADS,))


def _rows(name: str, width: int) -> int:
    """The rows of a warp. Columns that are loaded serve all of them: many columns want more rows."""
    return 4 if width == 8 or (width == 1 and name in _FOUR_ROWS) else 2


def _busy(name: str, width: int) -> int:
    return _BUSY // 2 if width == 1 and name in _FOUR_ROWS else _BUSY


def _teams(teams: int, k: int, times: int, enough: int) -> Shape:
    """So many teams, `times` over, of as many warps as make enough of them; see matvec.cu."""
    split = 1
    while split < _MOST_SPLIT and split * _STRETCH < k and teams * times * split < enough:
        split *= 2
    together = max(1, _TEAM_WARPS // split)
    return Shape((-(-teams // together), max(1, times)), (WARP, split, together))
