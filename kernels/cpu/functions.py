"""Functions of vectors that the CPU has no instruction for."""

from typing import Any

import numpy as np

from .runtime import jit
from .simd import (
    bitcast,
    divide,
    f32,
    f32x16,
    fma,
    hmax,
    hsum,
    i32x16,
    load,
    maximum,
    minimum,
    negated,
    rounded,
    splat,
    store,
    to_i32,
    where_less,
    zero,
)

_LOG2E = np.float32(1.4426950408889634)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
# Cephes' expf (S. Moshier): exp(r) = 1 + r + r^2 * P(r) on |r| <= ln(2) / 2, relative error 2e-7.
_P = tuple(
    np.float32(c)
    for c in (
        1.9875691500e-4,
        1.3981999507e-3,
        8.3334519073e-3,
        4.1665795894e-2,
        1.6666665459e-1,
        5.0000001201e-1,
    )
)


@jit
def exp(x: Any) -> Any:
    """e^x for 16 floats; below -87 it gives 0, above 88 infinity; what is no number stays none."""
    least, most = splat(f32x16, np.float32(-87.0)), splat(f32x16, np.float32(88.0))
    near = minimum(maximum(x, least), most)
    n = rounded(near * splat(f32x16, _LOG2E))
    r = fma(n, splat(f32x16, -_LN2_HIGH), near)
    r = fma(n, splat(f32x16, -_LN2_LOW), r)
    p = fma(splat(f32x16, _P[0]), r, splat(f32x16, _P[1]))
    p = fma(p, r, splat(f32x16, _P[2]))
    p = fma(p, r, splat(f32x16, _P[3]))
    p = fma(p, r, splat(f32x16, _P[4]))
    p = fma(p, r, splat(f32x16, _P[5]))
    p = fma(p, r * r, r + splat(f32x16, np.float32(1.0)))
    y = bitcast(f32x16, bitcast(i32x16, p) + (to_i32(n) << 23)) + (x - x)
    y = where_less(x, least, zero(f32x16), y)
    return where_less(most, x, splat(f32x16, np.float32(np.inf)), y)


@jit
def silu(x: Any) -> Any:
    """x / (1 + e^-x) for 16 floats."""
    return divide(x, splat(f32x16, np.float32(1.0)) + exp(negated(x)))


@jit
def softmax_step(s: int, n: int, scale: np.float32, largest: np.float32) -> tuple[np.float32, np.float32]:
    """Scores at s to weights e^(s * scale - max), max over these and `largest`: (max, sum of weights).

    What follows the n scores is written over up to the next multiple of 16.
    """
    whole = n // 16 * 16
    by, tops = splat(f32x16, scale), splat(f32x16, largest)
    for j in range(0, whole, 16):
        tops = maximum(tops, load(f32x16, s + 4 * j) * by)
    largest = hmax(tops)
    for j in range(whole, n):
        largest = max(largest, load(f32, s + 4 * j) * scale)
    top, sums = splat(f32x16, largest), zero(f32x16)
    for j in range(0, n, 16):
        weights = exp(load(f32x16, s + 4 * j) * by - top)
        store(f32x16, weights, s + 4 * j)
        if j < whole:
            sums = sums + weights
    total = hsum(sums)
    for j in range(whole, n):
        total += load(f32, s + 4 * j)
    return largest, total
