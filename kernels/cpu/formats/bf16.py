"""BF16: the upper half of a float32."""

from ..runtime import kernel
from ..simd import bf16, bf16x16, f32, load, store
from .rows import dot_of, matmul_of

COLUMNS = "f32"
matmul = kernel(matmul_of(dot_of(bf16x16, bf16, 2)))


@kernel
def dequantize(w: int, k: int, y: int) -> None:
    """One row."""
    for i in range(k):
        store(f32, load(bf16, w + 2 * i), y + 4 * i)
