"""IQ1_M: superblocks of 256 values, eight at a time from IQ1_S's code book.

{ u8 q[32]; u8 qh[16]; u16 scales[4] }: nibble i of qh holds the top of index q[i] (three bits) and the sign
of its delta of 1/8. The top nibbles of scales, first the lowest, are a half float d; below they have four
scales of three bits, one a 16 values. A weight is d * (2 * scale + 1) * (entry + delta).
"""

import numpy as np

from ..runtime import jit, kernel
from ..simd import f16, f32x8, load, store, u8, u16
from .floats import dequantized_matmul
from .iq1_s import values

COLUMNS = "f32"
SIZE = 56


@jit
def _half(scales: int, scratch: int) -> np.float32:
    bits = np.int64(0)
    for i in range(4):
        bits |= (np.int64(load(u16, scales + 2 * i)) >> 12) << (4 * i)
    store(u16, bits, scratch)  # half floats are read from memory only
    return load(f16, scratch)


@jit
def _dequantize(w: int, k: int, y: int) -> None:
    for i in range(k // 16):
        p, j = w + SIZE * (i // 16), i % 16
        scale = (np.int64(load(u16, p + 48 + 2 * (j // 4))) >> (3 * (j % 4))) & 7
        d = _half(p + 48, y + 64 * i) * np.float32(2 * scale + 1)
        h = np.int64(load(u8, p + 32 + j))
        store(f32x8, values(p + 2 * j, h & 7, h & 8, d), y + 64 * i)
        store(f32x8, values(p + 2 * j + 1, (h >> 4) & 7, h & 128, d), y + 64 * i + 32)


matmul = kernel(dequantized_matmul(_dequantize, SIZE))
dequantize = kernel(_dequantize)
