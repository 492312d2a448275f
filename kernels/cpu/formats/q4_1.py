"""Q4_1: blocks of 32 nibbles, a half-float scale and minimum.

{ f16 d, m; u8 q[16] }: d * nibble + m, the nibbles lie as in Q4_0.
"""

from ..runtime import jit, kernel
from ..simd import f32x8, zero
from .blocks import blocks_dequantize, blocks_matmul, half
from .q4_0 import nibbles

COLUMNS = "q8"
SIZE = 20


@jit
def _unpack(p: int) -> object:
    return nibbles(p + 4)


@jit
def scale(p: int) -> tuple[object, object]:
    """The scale and the minimum at p, the latter to be subtracted (Q5_1 has the same)."""
    return half(p), zero(f32x8) - half(p + 2)


matmul = kernel(blocks_matmul(_unpack, scale, SIZE, 15))
dequantize = kernel(blocks_dequantize(_unpack, scale, SIZE, 15))
