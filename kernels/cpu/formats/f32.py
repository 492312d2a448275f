"""F32: plain floats."""

from ..runtime import kernel
from ..simd import f32, f32x16
from .floats import floats_dequantize, floats_matmul

COLUMNS = "f32"
SIZE = 4
matmul = kernel(floats_matmul(f32x16, f32, SIZE))
dequantize = kernel(floats_dequantize(f32x16, f32, SIZE))
