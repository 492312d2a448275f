"""IQ4_NL: blocks of 32 nibbles that index a table, one half-float scale. { f16 d; u8 q[16] } as in Q4_0."""

import numpy as np

from ..runtime import jit, kernel
from ..simd import address_of, f32x8, i8x16, load, lookup, splat
from .blocks import blocks_dequantize, blocks_matmul, half
from .q4_0 import nibbles

COLUMNS = "q8"
SIZE = 18
_VALUES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113])
_UNSIGNED = (_VALUES + 128).astype(np.uint8)


@jit
def values(indices: object) -> object:
    """The table's bytes + 128 for nibbles, one a byte (IQ4_XS has the same)."""
    return lookup(load(i8x16, address_of(_UNSIGNED)), indices)


@jit
def _unpack(p: int) -> object:
    return values(nibbles(p + 2))


@jit
def _scale(p: int) -> tuple[object, object]:
    d = half(p)
    return d, d * splat(f32x8, 128.0)


matmul = kernel(blocks_matmul(_unpack, _scale, SIZE, full=True))
dequantize = kernel(blocks_dequantize(_unpack, _scale, SIZE))
