"""TQ2_0: superblocks of 256 pairs of bits less 1, one half-float scale. { u8 q[64]; f16 d }: as in Q2_K."""

from ..runtime import jit, kernel
from ..simd import f16, f32x8, load, splat
from .q2_k import pairs
from .superblocks import superblocks_dequantize, superblocks_matmul
from .values import Values

COLUMNS = "q8"
SIZE = 66
_VALUES = Values(3, offset=1)


@jit
def _scale(p: int) -> object:
    return splat(f32x8, load(f16, p + 64))


matmul = kernel(superblocks_matmul(pairs, _scale, SIZE, 8, _VALUES))
dequantize = kernel(superblocks_dequantize(pairs, _scale, SIZE, 8, _VALUES))
