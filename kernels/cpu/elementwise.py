"""Norms, rotary embedding, activation, sums and copies of rows as operations on float32."""

import math

import numpy as np

from .functions import silu
from .kinds import Lanes
from .runtime import Struct, at, jit, kernel, share
from .simd import f32, f32x16, fma, hsum, i32, i64, load, numbers, shuffle, splat, store, zero

RMS_NORM = Struct("n groups x y width weight eps:f")
ROPE_TABLE = Struct("n positions frequencies dims table magnitude:f slope:f period:f")
ROPE = Struct("n x heads head_dim dims table neighbours")
SWIGLU = Struct("n gate up y width")
ADD = Struct("n x y width")
PICK = Struct("n rows x y width")

_SWAPPED = Lanes([i ^ 1 for i in range(16)])
_COSINES, _SINES = Lanes([i & 14 for i in range(16)]), Lanes([i | 1 for i in range(16)])
_SIGNS = Lanes([-1, 1] * 8)


@jit
def _rms_norm(x: int, y: int, width: int, weight: int, eps: np.float32) -> None:
    squares = zero(f32x16)
    rest = np.float32(0.0)
    whole = width // 16 * 16
    for i in range(0, whole, 16):
        v = load(f32x16, x + 4 * i)
        squares = fma(v, v, squares)
    for i in range(whole, width):
        rest += load(f32, x + 4 * i) * load(f32, x + 4 * i)
    scale = np.float32(1.0) / np.sqrt((hsum(squares) + rest) / np.float32(width) + eps)
    for i in range(0, whole, 16):
        store(
            f32x16, load(f32x16, x + 4 * i) * splat(f32x16, scale) * load(f32x16, weight + 4 * i), y + 4 * i
        )
    for i in range(whole, width):
        store(f32, load(f32, x + 4 * i) * scale * load(f32, weight + 4 * i), y + 4 * i)


@kernel
def rms_norm(args: int, thread: int, threads: int) -> None:
    """RMS_NORM: each of n * groups rows of `width` (a row, or a head) normed and weighted; x may be y."""
    a = at(RMS_NORM, args)
    begin, end = share(load(i64, a.n) * a.groups, thread, threads, 1)
    for i in range(begin, end):
        _rms_norm(a.x + 4 * a.width * i, a.y + 4 * a.width * i, a.width, a.weight, np.float32(a.eps))


@kernel
def rope_table(args: int, thread: int, threads: int) -> None:
    """ROPE_TABLE: (cos, sin) of position * frequency, times a magnitude: table[n, dims / 2, 2].

    With a slope the magnitude grows with the position: 1 + slope * log(1 + floor(position / period)).
    """
    a = at(ROPE_TABLE, args)
    half = a.dims // 2
    begin, end = share(load(i64, a.n), thread, threads, 1)
    for i in range(begin, end):
        position = np.float64(load(i32, a.positions + 4 * i))
        magnitude = a.magnitude
        if a.slope != 0.0:
            magnitude *= 1.0 + a.slope * math.log(1.0 + math.floor(position / a.period))
        for j in range(half):
            angle = position * np.float64(load(f32, a.frequencies + 4 * j))
            at_j = a.table + 8 * (i * half + j)
            store(f32, np.float32(math.cos(angle) * magnitude), at_j)
            store(f32, np.float32(math.sin(angle) * magnitude), at_j + 4)


@jit
def _rotate(x: int, table: int, half: int, neighbours: bool, first: int) -> None:
    """Pairs from `first` on of a head, one by one."""
    for j in range(first, half):
        p = x + 8 * j if neighbours else x + 4 * j
        q = p + 4 if neighbours else p + 4 * half
        c, s = load(f32, table + 8 * j), load(f32, table + 8 * j + 4)
        u, v = load(f32, p), load(f32, q)
        store(f32, u * c - v * s, p)
        store(f32, u * s + v * c, q)


@jit
def _rotate_neighbours(x: int, table: int, half: int) -> None:
    """All pairs of a head, eight at a time."""
    whole = half // 8 * 8
    for j in range(0, whole, 8):
        pairs, angles = load(f32x16, x + 8 * j), load(f32x16, table + 8 * j)
        turned = shuffle(pairs, _SWAPPED) * (shuffle(angles, _SINES) * numbers(f32x16, _SIGNS))
        store(f32x16, fma(pairs, shuffle(angles, _COSINES), turned), x + 8 * j)
    _rotate(x, table, half, True, whole)


@kernel
def rope(args: int, thread: int, threads: int) -> None:
    """ROPE: rotate pairs of the first `dims` values of each head of x[n, heads, head_dim], in place.

    A pair is two neighbours (llama.cpp's NORM), or one of each half of the dims (NEOX).
    """
    a = at(ROPE, args)
    half = a.dims // 2
    begin, end = share(load(i64, a.n) * a.heads, thread, threads, 1)
    for i in range(begin, end):
        x, table = a.x + 4 * a.head_dim * i, a.table + 8 * half * (i // a.heads)
        if a.neighbours:
            _rotate_neighbours(x, table, half)
        else:
            _rotate(x, table, half, False, 0)


@kernel
def swiglu(args: int, thread: int, threads: int) -> None:
    """SWIGLU: y = silu(gate) * up, all [n, width]; y may be gate or up (Shazeer 2020)."""
    a = at(SWIGLU, args)
    total = load(i64, a.n) * a.width
    begin, end = share(total, thread, threads, 16)
    for i in range(begin, end - 15, 16):
        store(f32x16, silu(load(f32x16, a.gate + 4 * i)) * load(f32x16, a.up + 4 * i), a.y + 4 * i)
    for i in range(begin + (end - begin) // 16 * 16, end):
        g = load(f32, a.gate + 4 * i)
        store(f32, g / (np.float32(1.0) + np.exp(-g)) * load(f32, a.up + 4 * i), a.y + 4 * i)


@kernel
def add(args: int, thread: int, threads: int) -> None:
    """ADD: y[n, width] += x[n, width]."""
    a = at(ADD, args)
    begin, end = share(load(i64, a.n) * a.width, thread, threads, 16)
    for i in range(begin, end - 15, 16):
        store(f32x16, load(f32x16, a.x + 4 * i) + load(f32x16, a.y + 4 * i), a.y + 4 * i)
    for i in range(begin + (end - begin) // 16 * 16, end):
        store(f32, load(f32, a.x + 4 * i) + load(f32, a.y + 4 * i), a.y + 4 * i)


@kernel
def pick(args: int, thread: int, threads: int) -> None:
    """PICK: y[i] = x[rows[i]] for n rows (int32) of `width` floats."""
    a = at(PICK, args)
    begin, end = share(load(i64, a.n), thread, threads, 1)
    for i in range(begin, end):
        source = a.x + 4 * a.width * np.int64(load(i32, a.rows + 4 * i))
        for j in range(a.width):
            store(f32, load(f32, source + 4 * j), a.y + 4 * (a.width * i + j))
