"""The code books of the IQ formats, from the gguf package, and the signs that go with them."""

import numpy as np
from gguf import quants

from ..kinds import Kind
from ..runtime import jit
from ..simd import f32x8, i8x8, join, load, sext, to_f32

_i8x4 = Kind("i8", 4)


def grid(name: str) -> np.ndarray:
    """A format's code book: int8 [entries, 8 or 4]."""
    book = getattr(quants, name)
    book.init_grid()
    return book.grid.reshape(book.grid_shape).astype(np.int8)


def _signs(codes: np.ndarray) -> np.ndarray:
    bits = np.unpackbits(codes[:, None], axis=1, bitorder="little")
    return (1.0 - 2.0 * bits).astype(np.float32)


_CODES = np.arange(256, dtype=np.uint8)
SIGNS = _signs(_CODES)  # for eight bits, 1 or -1 eight times: a set bit is a minus
# Seven bits of signs, the eighth makes their number even.
EVEN_SIGNS = _signs(_CODES[:128] | (np.bitwise_count(_CODES[:128]) % 2 * 128).astype(np.uint8))


@jit
def entry(book: int, index: int) -> object:
    """Eight values of the code book at an address."""
    return to_f32(sext(load(i8x8, book + 8 * index)))


@jit
def two_entries(book: int, first: int, second: int) -> object:
    """Eight values: two entries of a code book of fours."""
    return to_f32(sext(join(load(_i8x4, book + 4 * first), load(_i8x4, book + 4 * second))))


@jit
def signs(table: int, index: int) -> object:
    """Eight signs, from the address of SIGNS or of EVEN_SIGNS."""
    return load(f32x8, table + 32 * index)
