"""Cells of bfloat16."""

from ..runtime import kernel
from ..simd import bf16, bf16x16
from . import padded
from .floats import mix_of, scores_of, unpack_of, write_of

SIZE = 2

write = kernel(write_of(bf16, SIZE))
scores = kernel(scores_of(bf16x16, SIZE))
mix = kernel(mix_of(bf16x16, SIZE))
unpack = kernel(unpack_of(bf16x16, SIZE))


def row_bytes(d: int) -> int:
    """The size of a row of d values."""
    return SIZE * padded(d)
