"""Q6_K: superblocks of 256 6-bit values less 32; 16 sub-blocks with signed byte scales.

{ u8 ql[128]; u8 qh[64]; i8 scales[16]; f16 d }: each half of the superblock (128 values) has 64 bytes of low
nibbles and 32 bytes of high bit pairs. Values 0-63 of a half are low nibbles, 64-127 high nibbles; the pairs
at bits 0, 2, 4, 6 of qh belong to values 0-31, 32-63, 64-95, 96-127.
"""

from ..kinds import Lanes
from ..runtime import jit, kernel
from ..simd import f16, f32x16, i8x16, i32x16, load, numbers, sext, splat, to_f32
from .q2_k import twice
from .superblocks import superblocks_dequantize, superblocks_matmul
from .values import Values

COLUMNS = "q8"
SIZE = 210
_NIBBLE, _TOP = Lanes([0] * 8 + [4] * 8), Lanes([4] * 8 + [0] * 8)  # shifts for a vector's two blocks
_VALUES = Values(63, offset=32)


@jit
def _half(low: int, high: int) -> tuple[object, object]:
    nibble = numbers(i32x16, _NIBBLE)
    q_0, q_1 = twice(low) >> nibble, twice(low + 32) >> nibble
    h = twice(high) << numbers(i32x16, _TOP)
    return (q_0 & 0x0F0F0F0F) | (h & 0x30303030), (q_1 & 0x0F0F0F0F) | ((h >> 2) & 0x30303030)


@jit
def _unpack(p: int) -> tuple[object, object, object, object]:
    return _half(p, p + 128) + _half(p + 64, p + 160)


@jit
def _scale(p: int) -> object:
    return to_f32(sext(load(i8x16, p + 192))) * splat(f32x16, load(f16, p + 208))


matmul = kernel(superblocks_matmul(_unpack, _scale, SIZE, 16, _VALUES))
dequantize = kernel(superblocks_dequantize(_unpack, _scale, SIZE, 16, _VALUES))
