"""Q5_0: blocks of 32 5-bit values less 16, one half-float scale.

{ f16 d; u8 qh[4]; u8 q[16] }: the nibbles of q lie as in Q4_0; bit i of qh is the fifth bit of value i.
"""

import numpy as np

from ..kinds import Lanes
from ..runtime import jit, kernel
from ..simd import address_of, bitcast, f16x8, gather, i8x16, i32x16, join, load, shuffle
from .blocks import blocks_dequantize, blocks_matmul
from .q4_0 import nibbles
from .values import Values

COLUMNS = "q8"
SIZE = 22
_VALUES = Values(31, offset=16)
_EIGHT_TIMES = Lanes([i // 8 for i in range(32)])
_BIT = np.tile(1 << np.arange(8, dtype=np.uint8), 8)
_CARRY = np.uint8(128) - _BIT


@jit
def five_bits(p: int, q: int) -> object:
    """32 values from the 4 bytes of fifth bits at p and the 16 of nibbles after them, and as many from q.

    Q5_1 has the same.
    """
    both = join(shuffle(load(i8x16, p), _EIGHT_TIMES), shuffle(load(i8x16, q), _EIGHT_TIMES))
    h = bitcast(i32x16, both) & load(i32x16, address_of(_BIT))
    # A byte is now 2 ** i or 0. What is missing to 128 carries it into the top bit, never into its neighbour.
    h = h + load(i32x16, address_of(_CARRY))
    return nibbles(p + 4, q + 4) | ((h >> 3) & 0x10101010)


@jit
def _unpack(p: int, q: int) -> object:
    return five_bits(p + 2, q + 2)


@jit
def _scale(p: int) -> object:
    return gather(f16x8, p, SIZE)


matmul = kernel(blocks_matmul(_unpack, _scale, SIZE, _VALUES))
dequantize = kernel(blocks_dequantize(_unpack, _scale, SIZE, _VALUES))
