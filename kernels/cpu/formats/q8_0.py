"""Q8_0: blocks of 32 signed bytes, one half-float scale. { f16 d; i8 q[32] }"""

from ..llvm_ir import SIGNED
from ..runtime import jit, kernel
from ..simd import f16x8, gather, i32x8, join, load
from .blocks import blocks_dequantize, blocks_matmul
from .values import Values

COLUMNS = "q8"
SIZE = 34


@jit
def _unpack(p: int, q: int) -> object:
    return join(load(i32x8, p + 2), load(i32x8, q + 2))


@jit
def _scale(p: int) -> object:
    return gather(f16x8, p, SIZE)


matmul = kernel(blocks_matmul(_unpack, _scale, SIZE, Values(SIGNED)))
dequantize = kernel(blocks_dequantize(_unpack, _scale, SIZE, Values(SIGNED)))
