"""Q5_K: superblocks of 256 5-bit values; 8 sub-blocks with 6-bit scales and minima as in Q4_K.

{ f16 d, dmin; u8 scales[12]; u8 qh[32]; u8 q[128] }: the nibbles lie as in Q4_K; bit i of qh[j] is the fifth
bit of value 32 i + j.
"""

from ..kinds import Lanes
from ..runtime import jit, kernel
from ..simd import i32x16, numbers
from .q2_k import twice
from .q4_k import nibbles, scale
from .superblocks import superblocks_dequantize, superblocks_matmul
from .values import Values

COLUMNS = "q8"
SIZE = 176
_SECOND = Lanes([0] * 8 + [2] * 8)  # how much higher the bits of a vector's second block are
_VALUES = Values(31, minima=True)


@jit
def _unpack(p: int) -> tuple[object, object, object, object]:
    h, second = twice(p + 16), numbers(i32x16, _SECOND)
    low, high = (h << 4) >> second, h >> second
    q_0, q_1, q_2, q_3 = nibbles(p + 48)
    top = 0x10101010
    return q_0 | (low & top), q_1 | ((low >> 1) & top), q_2 | (high & top), q_3 | ((high >> 1) & top)


matmul = kernel(superblocks_matmul(_unpack, scale, SIZE, 8, _VALUES))
dequantize = kernel(superblocks_dequantize(_unpack, scale, SIZE, 8, _VALUES))
