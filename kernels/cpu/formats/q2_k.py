"""Q2_K: superblocks of 256 pairs of bits; 16 sub-blocks with 4-bit scales and minima.

{ u8 scales[16]; u8 q[64]; f16 d, dmin }: the pairs at bits 0, 2, 4, 6 of q[0:32] are values 0-31, 32-63,
64-95, 96-127; those of q[32:64], the other half. A scale is the low nibble of its byte, a minimum the high
one; a weight is d * scale * pair - dmin * minimum.
"""

from ..kinds import Lanes
from ..runtime import jit, kernel
from ..simd import f16, f32x16, i8x16, i32x8, i32x16, load, numbers, shuffle, splat, to_f32, zext
from .superblocks import superblocks_dequantize, superblocks_matmul
from .values import Values

COLUMNS = "q8"
SIZE = 84
_TWICE = Lanes([*range(8)] * 2)
_EVENS, _ODDS = Lanes([0] * 8 + [4] * 8), Lanes([2] * 8 + [6] * 8)  # bits of a byte
_VALUES = Values(3, minima=True)


@jit
def twice(p: int) -> object:
    """The 32 bytes at p, and the same again."""
    return shuffle(load(i32x8, p), _TWICE)


@jit
def pairs(p: int) -> tuple[object, object, object, object]:
    """256 values from the 64 bytes at p (Q3_K and TQ2_0 have the same)."""
    low, high = twice(p), twice(p + 32)
    evens, odds = numbers(i32x16, _EVENS), numbers(i32x16, _ODDS)
    mask = 0x03030303
    return (low >> evens) & mask, (low >> odds) & mask, (high >> evens) & mask, (high >> odds) & mask


@jit
def _unpack(p: int) -> tuple[object, object, object, object]:
    return pairs(p + 16)


@jit
def _scale(p: int) -> tuple[object, object]:
    s = zext(load(i8x16, p))
    d, m = splat(f32x16, load(f16, p + 80)), splat(f32x16, load(f16, p + 82))
    return to_f32(s & 15) * d, to_f32(s >> 4) * m


matmul = kernel(superblocks_matmul(_unpack, _scale, SIZE, 16, _VALUES))
dequantize = kernel(superblocks_dequantize(_unpack, _scale, SIZE, 16, _VALUES))
