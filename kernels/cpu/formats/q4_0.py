"""Q4_0: blocks of 32 nibbles less 8, one half-float scale.

{ f16 d; u8 q[16] }: q[i] holds values i (low) and i + 16 (high).
"""

from ..kinds import Lanes
from ..runtime import jit, kernel
from ..simd import f16x8, gather, i32x4, i32x16, join, load, numbers, shuffle
from .blocks import blocks_dequantize, blocks_matmul
from .values import Values

COLUMNS = "q8"
SIZE = 18
_TWICE, _HIGH = Lanes([0, 1, 2, 3] * 2), Lanes([0, 0, 0, 0, 4, 4, 4, 4] * 2)
_VALUES = Values(15, offset=8)


@jit
def nibbles(p: int, q: int) -> object:
    """32 values from the 16 bytes at p, and 32 from those at q: the low nibbles, then the high ones."""
    both = join(shuffle(load(i32x4, p), _TWICE), shuffle(load(i32x4, q), _TWICE))
    return (both >> numbers(i32x16, _HIGH)) & 0x0F0F0F0F


@jit
def _unpack(p: int, q: int) -> object:
    return nibbles(p + 2, q + 2)


@jit
def _scale(p: int) -> object:
    return gather(f16x8, p, SIZE)


matmul = kernel(blocks_matmul(_unpack, _scale, SIZE, _VALUES))
dequantize = kernel(blocks_dequantize(_unpack, _scale, SIZE, _VALUES))
