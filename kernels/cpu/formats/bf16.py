"""BF16: the upper half of a float32."""

from ..runtime import kernel
from ..simd import bf16, bf16x16
from .floats import floats_dequantize, floats_matmul

COLUMNS = "f32"
SIZE = 2
matmul = kernel(floats_matmul(bf16x16, bf16, SIZE))
dequantize = kernel(floats_dequantize(bf16x16, bf16, SIZE))
