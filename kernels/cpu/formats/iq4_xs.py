"""IQ4_XS: superblocks of 256 nibbles that index IQ4_NL's table; 8 sub-blocks with 6-bit scales less 32.

{ f16 d; u16 tops; u8 scales[4]; u8 q[128] }: sub-block i has its nibbles in q[16 i : 16 i + 16] as in Q4_0;
its scale is nibble i of scales and, above it, pair i of tops.
"""

import numpy as np

from ..llvm_ir import SIGNED
from ..runtime import jit, kernel
from ..simd import (
    Lanes,
    address_of,
    f16,
    f32x8,
    i32x8,
    join,
    load,
    shuffle,
    splat,
    to_f32,
    u16,
    u32,
)
from .iq4_nl import values
from .superblocks import superblocks_dequantize, superblocks_matmul

COLUMNS = "q8"
SIZE = 136
_NIBBLE = np.arange(0, 32, 4, dtype=np.int32)
_PAIR = np.arange(0, 16, 2, dtype=np.int32)
_IN_ORDER = Lanes([0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7, 12, 13, 14, 15])


@jit
def _two_blocks(p: int) -> object:
    q = load(i32x8, p)
    return values(shuffle(join(q, q >> 4), _IN_ORDER) & 0x0F0F0F0F)


@jit
def _unpack(p: int) -> tuple[object, object, object, object]:
    return _two_blocks(p + 8), _two_blocks(p + 40), _two_blocks(p + 72), _two_blocks(p + 104)


@jit
def _scale(p: int) -> object:
    low = splat(i32x8, load(u32, p + 4)) >> load(i32x8, address_of(_NIBBLE))
    tops = splat(i32x8, load(u16, p + 2)) >> load(i32x8, address_of(_PAIR))
    return to_f32(((low & 15) | ((tops & 3) << 4)) - 32) * splat(f32x8, load(f16, p))


matmul = kernel(superblocks_matmul(_unpack, _scale, SIZE, 8, SIGNED))
dequantize = kernel(superblocks_dequantize(_unpack, _scale, SIZE, 8, SIGNED))
