"""Q5_1: blocks of 32 5-bit values, a half-float scale and minimum.

{ f16 d, m; u8 qh[4]; u8 q[16] }: d * value + m, the bits lie as in Q5_0.
"""

from ..runtime import jit, kernel
from ..simd import f16x8, f32x8, gather, zero
from .blocks import blocks_dequantize, blocks_matmul
from .q5_0 import five_bits
from .values import Values

COLUMNS = "q8"
SIZE = 24
_VALUES = Values(31, minima=True)


@jit
def _unpack(p: int, q: int) -> object:
    return five_bits(p + 4, q + 4)


@jit
def _scale(p: int) -> tuple[object, object]:
    return gather(f16x8, p, SIZE), zero(f32x8) - gather(f16x8, p + 2, SIZE)


matmul = kernel(blocks_matmul(_unpack, _scale, SIZE, _VALUES))
dequantize = kernel(blocks_dequantize(_unpack, _scale, SIZE, _VALUES))
