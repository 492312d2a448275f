"""Q4_1: blocks of 32 nibbles, a half-float scale and minimum. { f16 d, m; u8 q[16] }: d * nibble + m, as in Q4_0."""

import numpy as np

from ..runtime import jit, kernel
from ..simd import f16, load
from .q4_0 import nibbles
from .rows import blocks_dequantize, blocks_dot, matmul_of

COLUMNS = "q8"
SIZE = 20


@jit
def _unpack(p: int) -> object:
    return nibbles(p + 4)


@jit
def scale(p: int) -> tuple[np.float32, np.float32]:
    """The scale and the minimum at p, the latter to be subtracted."""
    return load(f16, p), -load(f16, p + 2)


_matmul = matmul_of(blocks_dot(_unpack, scale, SIZE))
_dequantize = blocks_dequantize(_unpack, scale, SIZE)


@kernel
def matmul(task: int) -> None:
    """Rows times columns."""
    _matmul(task)


@kernel
def dequantize(w: int, k: int, y: int) -> None:
    """One row."""
    _dequantize(w, k, y)
