"""Q8_0: blocks of 32 signed bytes, one half-float scale. { f16 d; i8 q[32] }"""

from ..runtime import jit, kernel
from ..simd import f32x8, i32x8, load, splat
from .blocks import blocks_dequantize, blocks_matmul, half

COLUMNS = "q8"
SIZE = 34


@jit
def _unpack(p: int) -> object:
    return load(i32x8, p + 2) ^ 0x80808080  # signed to unsigned: + 128


@jit
def _scale(p: int) -> tuple[object, object]:
    d = half(p)
    return d, d * splat(f32x8, 128.0)


matmul = kernel(blocks_matmul(_unpack, _scale, SIZE, full=True))
dequantize = kernel(blocks_dequantize(_unpack, _scale, SIZE))
