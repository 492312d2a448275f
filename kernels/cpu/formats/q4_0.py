"""Q4_0: blocks of 32 nibbles less 8, one half-float scale. { f16 d; u8 q[16] }: q[i] holds values i and i + 16."""

import numpy as np

from ..runtime import jit, kernel
from ..simd import f16, f32, i32x4, join, load, store, u8
from .rows import blocks_dot, matmul_of

COLUMNS = "q8"
SIZE = 18


@jit
def _unpack(p: int) -> object:
    q = load(i32x4, p + 2)
    return join(q & 0x0F0F0F0F, (q >> 4) & 0x0F0F0F0F)


@jit
def _scale(p: int) -> tuple[np.float32, np.float32]:
    d = load(f16, p)
    return d, d * np.float32(8.0)


_matmul = matmul_of(blocks_dot(_unpack, _scale, SIZE))


@kernel
def matmul(task: int) -> None:
    """Rows times columns."""
    _matmul(task)


@kernel
def dequantize(w: int, k: int, y: int) -> None:
    """One row."""
    for i in range(k // 32):
        p = w + SIZE * i
        d = load(f16, p)
        for j in range(16):
            q = np.int64(load(u8, p + 2 + j))
            store(f32, d * np.float32((q & 15) - 8), y + 4 * (32 * i + j))
            store(f32, d * np.float32((q >> 4) - 8), y + 4 * (32 * i + j + 16))
