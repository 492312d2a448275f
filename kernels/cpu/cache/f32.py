"""Cells of float32."""

from ..runtime import kernel
from ..simd import f32, f32x16
from . import padded
from .floats import mix_of, scores_of, unpack_of, write_of

SIZE = 4

write = kernel(write_of(f32, SIZE))
scores = kernel(scores_of(f32x16, SIZE))
mix = kernel(mix_of(f32x16, SIZE))
unpack = kernel(unpack_of(f32x16, SIZE))


def row_bytes(d: int) -> int:
    """The size of a row of d values."""
    return SIZE * padded(d)
