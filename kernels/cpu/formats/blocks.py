"""Blocks of 32 values with one scale, and perhaps a minimum: eight of them are a superblock."""

from typing import Any

from ..columns import VALUES
from ..runtime import jit
from ..simd import i32x4, load, store, u8
from .superblocks import superblocks_dequantize, superblocks_matmul
from .values import Values

_BLOCK, _BLOCKS = 32, 8


def blocks_matmul(unpack: Any, scale: Any, size: int, values: Values) -> Any:
    """matmul for formats in blocks of 32: unpack(p, q) -> in i32x16, 32 bytes of each of two blocks.

    scale(p) -> of eight blocks, f32x8 vectors: (d, m) or d, see Values. A block is `size` bytes.
    """
    return superblocks_matmul(_unpack_8(unpack, size), scale, *_shape(size, values))


def blocks_dequantize(unpack: Any, scale: Any, size: int, values: Values) -> Any:
    """dequantize(w, k, y) for the formats of blocks_matmul."""
    return superblocks_dequantize(_unpack_8(unpack, size), scale, *_shape(size, values))


def _shape(size: int, values: Values) -> tuple[int, int, Values, Any, int]:
    """The other arguments of superblocks_matmul."""
    return _BLOCKS * size, _BLOCKS, values, _complete_of(size), _BLOCKS * size


def _unpack_8(unpack: Any, size: int) -> Any:
    @jit
    def unpack_8(p: int) -> tuple[object, object, object, object]:
        q = p + 4 * size
        return (
            unpack(p, p + 2 * size),
            unpack(p + size, p + 3 * size),
            unpack(q, q + 2 * size),
            unpack(q + size, q + 3 * size),
        )

    return unpack_8


def _complete_of(size: int) -> Any:
    """complete for superblocks_matmul: a row need not end with a superblock."""

    @jit
    def complete(p: int, values: int, scratch: int) -> int:
        if values >= VALUES:
            return p
        n = values // _BLOCK * size
        for i in range(0, n - 15, 16):
            store(i32x4, load(i32x4, p + i), scratch + i)
        for i in range(n // 16 * 16, n):
            store(u8, load(u8, p + i), scratch + i)
        return scratch

    return complete
