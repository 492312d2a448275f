"""Mixture of experts as operations: who goes to which expert, and the weighted sum of what comes back.

A *pair* is one of a token's chosen experts: pair = token * used + choice. Pairs are sorted by expert, so that
an expert's columns lie side by side, and only the weights of experts that have some are read.
"""

import numpy as np

from .runtime import Struct, at, jit, kernel, share
from .simd import f32, i32, i64, load, store

ROUTE = Struct("n logits experts used normalize chosen weights")
SORT = Struct("n experts used chosen starts tokens places")
COMBINE = Struct("n used weights places x y width")


@jit
def _softmax(x: int, n: int) -> None:
    largest = np.float32(-np.inf)
    for i in range(n):
        largest = max(largest, load(f32, x + 4 * i))
    total = np.float32(0.0)
    for i in range(n):
        e = np.exp(load(f32, x + 4 * i) - largest)
        store(f32, e, x + 4 * i)
        total += e
    for i in range(n):
        store(f32, load(f32, x + 4 * i) / total, x + 4 * i)


@jit
def _largest(x: int, n: int) -> int:
    """The index of the largest of n floats, the first of equals."""
    best = 0
    for i in range(1, n):
        if load(f32, x + 4 * i) > load(f32, x + 4 * best):
            best = i
    return best


@kernel
def route(args: int, thread: int, threads: int) -> None:
    """ROUTE: each token's `used` most probable experts and their weights; overwrites the logits[n,
    experts]."""
    a = at(ROUTE, args)
    begin, end = share(load(i64, a.n), thread, threads, 1)
    for i in range(begin, end):
        probabilities, weights = a.logits + 4 * a.experts * i, a.weights + 4 * a.used * i
        _softmax(probabilities, a.experts)
        total = np.float32(0.0)
        for j in range(a.used):
            best = _largest(probabilities, a.experts)
            weight = load(f32, probabilities + 4 * best)
            store(f32, np.float32(-1.0), probabilities + 4 * best)  # not to be chosen again
            store(f32, weight, weights + 4 * j)
            store(i32, best, a.chosen + 4 * (a.used * i + j))
            total += weight
        for j in range(a.used if a.normalize != 0 else 0):
            store(f32, load(f32, weights + 4 * j) / total, weights + 4 * j)


@kernel
def sort(args: int, thread: int, threads: int) -> None:
    """SORT: a counting sort of the pairs by expert, by thread 0 (it is short).

    starts[experts + 1]: where each expert's pairs begin; tokens[place]: whose pair it is; places[pair].
    """
    a = at(SORT, args)
    if thread != 0:
        return
    pairs = load(i64, a.n) * a.used
    for e in range(a.experts + 1):
        store(i32, 0, a.starts + 4 * e)
    for pair in range(pairs):
        count = a.starts + 4 * (load(i32, a.chosen + 4 * pair) + 1)
        store(i32, load(i32, count) + 1, count)
    for e in range(a.experts):
        store(i32, load(i32, a.starts + 4 * e) + load(i32, a.starts + 4 * e + 4), a.starts + 4 * e + 4)
    # Now starts[e] counts up as the pairs are placed, and ends where starts[e + 1] was: shift back at the
    # end.
    for pair in range(pairs):
        start = a.starts + 4 * load(i32, a.chosen + 4 * pair)
        place = load(i32, start)
        store(i32, place + 1, start)
        store(i32, place, a.places + 4 * pair)
        store(i32, pair // a.used, a.tokens + 4 * place)
    for e in range(a.experts, 0, -1):
        store(i32, load(i32, a.starts + 4 * (e - 1)), a.starts + 4 * e)
    store(i32, 0, a.starts)


@kernel
def combine(args: int, thread: int, threads: int) -> None:
    """COMBINE: y[token] = the sum over its pairs of weight * x[place of the pair], rows of `width`."""
    a = at(COMBINE, args)
    begin, end = share(load(i64, a.n), thread, threads, 1)
    for i in range(begin, end):
        y = a.y + 4 * a.width * i
        for j in range(a.width):
            store(f32, np.float32(0.0), y + 4 * j)
        for pair in range(a.used * i, a.used * (i + 1)):
            weight = load(f32, a.weights + 4 * pair)
            x = a.x + 4 * a.width * np.int64(load(i32, a.places + 4 * pair))
            for j in range(a.width):
                store(f32, load(f32, y + 4 * j) + weight * load(f32, x + 4 * j), y + 4 * j)
