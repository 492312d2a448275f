"""Q5_K: superblocks of 256 5-bit values; 8 sub-blocks with 6-bit scales and minima as in Q4_K.

{ f16 d, dmin; u8 scales[12]; u8 qh[32]; u8 q[128] }: the nibbles lie as in Q4_K; bit i of qh[j] is the fifth
bit of value 32 i + j.
"""

from ..runtime import jit, kernel
from ..simd import i32x8, join, load
from .q4_k import nibbles, scale
from .superblocks import superblocks_dequantize, superblocks_matmul

COLUMNS = "q8"
SIZE = 176


@jit
def _unpack(p: int) -> tuple[object, object, object, object]:
    h = load(i32x8, p + 16)
    q_0, q_1, q_2, q_3 = nibbles(p + 48)
    top = 0x10101010
    low, high = join(h << 4, h << 3), join(h, h >> 1)
    return q_0 | (low & top), q_1 | ((low >> 2) & top), q_2 | (high & top), q_3 | ((high >> 2) & top)


matmul = kernel(superblocks_matmul(_unpack, scale, SIZE, 8, 31))
dequantize = kernel(superblocks_dequantize(_unpack, scale, SIZE, 8, 31))
