"""Q4_K: superblocks of 256 nibbles; 8 sub-blocks with 6-bit scales and minima.

{ f16 d, dmin; u8 scales[12]; u8 q[128] }: the 32 bytes at q + 32 j hold sub-blocks 2 j (low) and 2 j + 1
(high). A weight is d * scale * nibble - dmin * minimum. Scales 0-3 are the low six bits of scales[0:4],
minima 0-3 those of scales[4:8]; scales 4-7 are the low nibbles of scales[8:12], minima 4-7 the high ones, and
the free bits of the first eight bytes are their tops.
"""

from ..kinds import Kind, Lanes
from ..runtime import jit, kernel
from ..simd import i32, i32x16, load, numbers, shuffle, splat, to_f32
from .superblocks import superblocks_dequantize, superblocks_matmul
from .values import Values

COLUMNS = "q8"
SIZE = 144
_VALUES = Values(15, minima=True)

# A lane for the scale of sub-block 0, one for its minimum, then those of sub-block 1...
_f16x2, _i32x2 = Kind("f16", 2), Kind("i32", 2)
_TWO = Lanes([0, 1] * 8)
_EVEN, _ODD = Lanes(range(0, 16, 2)), Lanes(range(1, 16, 2))
# All bits of sub-blocks 0-3, and the tops of the others.
_SHIFTS = Lanes([8 * i + top for top in (0, 2) for i in range(4) for _ in range(2)])
_BITS = Lanes([0x3F] * 8 + [0x30] * 8)
# Their low bits.
_LOW_SHIFTS = Lanes([0] * 8 + [4 * i for i in range(8)])
_LOW_BITS = Lanes([0] * 8 + [0x0F] * 8)


@jit
def nibbles(p: int) -> tuple[object, object, object, object]:
    """256 values from the 128 bytes at p (Q5_K has the same)."""
    low, high, mask = load(i32x16, p), load(i32x16, p + 64), 0x0F0F0F0F
    return low & mask, (low >> 4) & mask, high & mask, (high >> 4) & mask


@jit
def _unpack(p: int) -> tuple[object, object, object, object]:
    return nibbles(p + 16)


@jit
def scale(p: int) -> tuple[object, object]:
    """The scales and minima of the block at p (Q5_K has the same)."""
    words, low = shuffle(load(_i32x2, p + 4), _TWO), splat(i32x16, load(i32, p + 12))
    words = (words >> numbers(i32x16, _SHIFTS)) & numbers(i32x16, _BITS)
    low = (low >> numbers(i32x16, _LOW_SHIFTS)) & numbers(i32x16, _LOW_BITS)
    both = to_f32(words | low) * shuffle(load(_f16x2, p), _TWO)
    return shuffle(both, _EVEN), shuffle(both, _ODD)


matmul = kernel(superblocks_matmul(_unpack, scale, SIZE, 8, _VALUES))
dequantize = kernel(superblocks_dequantize(_unpack, scale, SIZE, 8, _VALUES))
