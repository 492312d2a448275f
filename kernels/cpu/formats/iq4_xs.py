"""IQ4_XS: superblocks of 256 nibbles that index IQ4_NL's table; 8 sub-blocks with 6-bit scales less 32.

{ f16 d; u16 tops; u8 scales[4]; u8 q[128] }: sub-block i has its nibbles in q[16 i : 16 i + 16] as in Q4_0;
its scale is nibble i of scales and, above it, pair i of tops.
"""

import numpy as np

from ..llvm_ir import SIGNED
from ..runtime import jit, kernel
from ..simd import address_of, f16, f32x8, i32x8, load, splat, to_f32, u16, u32
from .iq4_nl import values
from .q4_0 import nibbles
from .superblocks import superblocks_dequantize, superblocks_matmul
from .values import Values

COLUMNS = "q8"
SIZE = 136
_NIBBLE = np.arange(0, 32, 4, dtype=np.int32)
_PAIR = np.arange(0, 16, 2, dtype=np.int32)


@jit
def _two_blocks(p: int) -> object:
    return values(nibbles(p, p + 32))


@jit
def _unpack(p: int) -> tuple[object, object, object, object]:
    return _two_blocks(p + 8), _two_blocks(p + 24), _two_blocks(p + 72), _two_blocks(p + 88)


@jit
def _scale(p: int) -> object:
    low = splat(i32x8, load(u32, p + 4)) >> load(i32x8, address_of(_NIBBLE))
    tops = splat(i32x8, load(u16, p + 2)) >> load(i32x8, address_of(_PAIR))
    return to_f32(((low & 15) | ((tops & 3) << 4)) - 32) * splat(f32x8, load(f16, p))


matmul = kernel(superblocks_matmul(_unpack, _scale, SIZE, 8, Values(SIGNED)))
dequantize = kernel(superblocks_dequantize(_unpack, _scale, SIZE, 8, Values(SIGNED)))
