"""Q8_0: blocks of 32 signed bytes, one half-float scale. { f16 d; i8 q[32] }"""

from ..llvm_ir import SIGNED
from ..runtime import jit, kernel
from ..simd import i32x8, load
from .blocks import blocks_dequantize, blocks_matmul, half

COLUMNS = "q8"
SIZE = 34


@jit
def _unpack(p: int) -> object:
    return load(i32x8, p + 2)


matmul = kernel(blocks_matmul(_unpack, half, SIZE, SIGNED))
dequantize = kernel(blocks_dequantize(_unpack, half, SIZE, SIGNED))
