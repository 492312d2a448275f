"""Cells of plain floats: what f32, f16 and bf16 share."""

from typing import Any

import numpy as np

from ..runtime import jit
from ..simd import f32, f32x16, fma, hsum, load, splat, store, zero


def write_of(scalar: Any, size: int) -> Any:
    """write, from the Kind of one value and its bytes."""

    @jit
    def write(x: int, row: int, d: int) -> None:
        for i in range((d + 31) // 32 * 32):
            store(scalar, load(f32, x + 4 * i) if i < d else np.float32(0.0), row + size * i)

    return write


def scores_of(vector: Any, size: int) -> Any:
    """scores, from the Kind of 16 values and the bytes of one."""

    @jit
    def scores(q: int, rows: int, row_bytes: int, n: int, d: int, out: int) -> None:
        for j in range(n):
            row = rows + j * row_bytes
            even, odd = zero(f32x16), zero(f32x16)
            for i in range(0, d, 32):
                even = fma(load(vector, row + size * i), load(f32x16, q + 4 * i), even)
                odd = fma(load(vector, row + size * (i + 16)), load(f32x16, q + 4 * i + 64), odd)
            store(f32, hsum(even + odd), out + 4 * j)

    return scores


def unpack_of(vector: Any, size: int) -> Any:
    """unpack, from the Kind of 16 values and the bytes of one."""

    @jit
    def unpack(rows: int, row_bytes: int, n: int, d: int, y: int) -> None:
        for j in range(n):
            for i in range(0, d, 16):
                store(f32x16, load(vector, rows + j * row_bytes + size * i), y + 4 * (j * d + i))

    return unpack


def mix_of(vector: Any, size: int) -> Any:
    """mix, from the Kind of 16 values and the bytes of one."""

    @jit
    def mix(p: int, rows: int, row_bytes: int, n: int, d: int, y: int) -> None:
        for i in range(0, d, 32):
            low, high = load(f32x16, y + 4 * i), load(f32x16, y + 4 * i + 64)
            for j in range(n):
                weight, row = splat(f32x16, load(f32, p + 4 * j)), rows + j * row_bytes + size * i
                low = fma(weight, load(vector, row), low)
                high = fma(weight, load(vector, row + 16 * size), high)
            store(f32x16, low, y + 4 * i)
            store(f32x16, high, y + 4 * i + 64)

    return mix
