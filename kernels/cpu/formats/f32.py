"""F32: plain floats."""

from ..runtime import kernel
from ..simd import f32, f32x16, load, store
from .rows import dot_of, matmul_of

COLUMNS = "f32"
matmul = kernel(matmul_of(dot_of(f32x16, f32, 4)))


@kernel
def dequantize(w: int, k: int, y: int) -> None:
    """One row."""
    for i in range(k):
        store(f32, load(f32, w + 4 * i), y + 4 * i)
