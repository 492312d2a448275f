"""IQ4_NL: blocks of 32 nibbles that index a table, one half-float scale. { f16 d; u8 q[16] } as in Q4_0."""

import numpy as np

from ..llvm_ir import SIGNED
from ..runtime import jit, kernel
from ..simd import address_of, f16x8, gather, i8x16, load, lookup
from .blocks import blocks_dequantize, blocks_matmul
from .q4_0 import nibbles
from .values import Values

COLUMNS = "q8"
SIZE = 18
_VALUES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8)


@jit
def values(indices: object) -> object:
    """The table's bytes for nibbles, one a byte (IQ4_XS has the same)."""
    return lookup(load(i8x16, address_of(_VALUES)), indices)


@jit
def _unpack(p: int, q: int) -> object:
    return values(nibbles(p + 2, q + 2))


@jit
def _scale(p: int) -> object:
    return gather(f16x8, p, SIZE)


matmul = kernel(blocks_matmul(_unpack, _scale, SIZE, Values(SIGNED)))
dequantize = kernel(blocks_dequantize(_unpack, _scale, SIZE, Values(SIGNED)))
