"""Q5_1: blocks of 32 5-bit values, a half-float scale and minimum.

{ f16 d, m; u8 qh[4]; u8 q[16] }: d * value + m, the bits lie as in Q5_0.
"""

from ..runtime import jit, kernel
from .blocks import blocks_dequantize, blocks_matmul
from .q4_1 import scale
from .q5_0 import five_bits

COLUMNS = "q8"
SIZE = 24


@jit
def _unpack(p: int) -> object:
    return five_bits(p + 4)


matmul = kernel(blocks_matmul(_unpack, scale, SIZE, 31))
dequantize = kernel(blocks_dequantize(_unpack, scale, SIZE, 31))
