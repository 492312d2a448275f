"""F16: IEEE half floats."""

from ..runtime import kernel
from ..simd import f16, f16x16, f32, load, store
from .rows import dot_of, matmul_of

COLUMNS = "f32"
matmul = kernel(matmul_of(dot_of(f16x16, f16, 2)))


@kernel
def dequantize(w: int, k: int, y: int) -> None:
    """One row."""
    for i in range(k):
        store(f32, load(f16, w + 2 * i), y + 4 * i)
