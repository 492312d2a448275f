"""What the memory gives: operations that only write, or only read, as many bytes as they are told."""

import numpy as np

from .runtime import Struct, at, kernel, share
from .simd import hsum, i32, i32x16, load, prefetch, splat, store, zero

PROBE = Struct("data lines sums")

LINE = 256
"""Bytes that one step reads, into four sums."""

_AHEAD = 4096  # bytes between a load and its prefetch


@kernel
def write_lines(args: int, thread: int, threads: int) -> None:
    """PROBE: ones to all int32 of data[lines, 64], each thread its share."""
    a = at(PROBE, args)
    begin, end = share(a.lines, thread, threads, 1)
    ones = splat(i32x16, np.int32(1))
    for p in range(a.data + LINE * begin, a.data + LINE * end, 64):
        store(i32x16, ones, p)


@kernel
def read_lines(args: int, thread: int, threads: int) -> None:
    """PROBE: sums[thread] (int32) = the sum of the thread's share of data[lines, 64], int32 that wrap."""
    a = at(PROBE, args)
    begin, end = share(a.lines, thread, threads, 1)
    s0, s1, s2, s3 = zero(i32x16), zero(i32x16), zero(i32x16), zero(i32x16)
    for p in range(a.data + LINE * begin, a.data + LINE * end, LINE):
        for i in range(0, LINE, 64):
            prefetch(p + _AHEAD + i)
        s0 = s0 + load(i32x16, p)
        s1 = s1 + load(i32x16, p + 64)
        s2 = s2 + load(i32x16, p + 128)
        s3 = s3 + load(i32x16, p + 192)
    store(i32, np.int64(hsum((s0 + s1) + (s2 + s3))), a.sums + 4 * thread)
