"""Q4_0: blocks of 32 nibbles less 8, one half-float scale.

{ f16 d; u8 q[16] }: q[i] holds values i (low) and i + 16 (high).
"""

from ..runtime import jit, kernel
from ..simd import f32x8, i32x4, join, load, splat
from .blocks import blocks_dequantize, blocks_matmul, half

COLUMNS = "q8"
SIZE = 18


@jit
def nibbles(p: int) -> object:
    """32 values from the 16 bytes at p: the low nibbles, then the high ones."""
    q = load(i32x4, p)
    return join(q, q >> 4) & 0x0F0F0F0F


@jit
def _unpack(p: int) -> object:
    return nibbles(p + 2)


@jit
def _scale(p: int) -> tuple[object, object]:
    d = half(p)
    return d, d * splat(f32x8, 8.0)


matmul = kernel(blocks_matmul(_unpack, _scale, SIZE, 15))
dequantize = kernel(blocks_dequantize(_unpack, _scale, SIZE, 15))
