"""F16: IEEE half floats."""

from ..runtime import kernel
from ..simd import f16, f16x16
from .floats import floats_dequantize, floats_matmul

COLUMNS = "f32"
SIZE = 2
matmul = kernel(floats_matmul(f16x16, f16, SIZE))
dequantize = kernel(floats_dequantize(f16x16, f16, SIZE))
