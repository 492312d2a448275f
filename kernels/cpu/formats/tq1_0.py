"""TQ1_0: superblocks of 256 ternary digits less 1, one half-float scale.

{ u8 q[48]; u8 qh[4]; f16 d }: a byte has five digits, as a fraction of 256: times 3, the first is what
exceeds a byte, and what remains goes on. The first digits of q[0:32] are values 0-31, the second ones
32-63...; q[32:48] follow alike (values 160-239), and then qh, with four digits.
"""

import numpy as np

from ..runtime import jit, kernel
from ..simd import f16, f32, load, store, u8
from .floats import dequantized_matmul

COLUMNS = "f32"
SIZE = 54


@jit
def _digits(q: int, n: int, digits: int, d: np.float32, y: int) -> None:
    for i in range(n):
        rest = np.int64(load(u8, q + i))
        for digit in range(digits):
            rest *= 3
            store(f32, d * np.float32((rest >> 8) - 1), y + 4 * (n * digit + i))
            rest &= 255


@jit
def _dequantize(w: int, k: int, y: int) -> None:
    for i in range(k // 256):
        p = w + SIZE * i
        d = load(f16, p + 52)
        _digits(p, 32, 5, d, y + 1024 * i)
        _digits(p + 32, 16, 5, d, y + 1024 * i + 640)
        _digits(p + 48, 4, 4, d, y + 1024 * i + 960)


matmul = kernel(dequantized_matmul(_dequantize, SIZE))
dequantize = kernel(_dequantize)
