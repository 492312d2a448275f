"""Attention over a paged KV cache, as operations.

Keys and values of one layer lie as cells[page, head, position in page], a row each (see cache/). Each token
names the row of `tables` that lists the pages of its sequence, so that any mix of sequences is one batch.
"""

from typing import Any

import numpy as np

from .functions import exp
from .runtime import Struct, at, invoke, jit, kernel, share
from .simd import address_of, f32, f32x16, i32, i64, load, splat, store

STORE = Struct("n x heads head_dim slots page cells row_bytes write")
ATTEND = Struct(
    "n q y heads kv_heads head_dim value_dim padded_dim padded_value positions sequences tables "
    "table_stride page keys key_bytes key_scores values value_bytes value_mix scale:f"
)


@kernel
def store_cells(args: int, thread: int, threads: int) -> None:
    """STORE: x[n, heads, head_dim] into the cells of each token's slot (page * page size + offset)."""
    a = at(STORE, args)
    begin, end = share(load(i64, a.n) * a.heads, thread, threads, 1)
    for i in range(begin, end):
        slot, head = np.int64(load(i32, a.slots + 4 * (i // a.heads))), i % a.heads
        row = ((slot // a.page) * a.heads + head) * a.page + slot % a.page
        invoke(a.write, (a.x + 4 * a.head_dim * i, a.cells + row * a.row_bytes, a.head_dim))


@jit
def _softmax_step(s: int, n: int, scale: np.float32, largest: np.float32) -> tuple[np.float32, np.float32]:
    """Scores at s to weights e^(s * scale - max), max over these and `largest`: (max, sum of weights)."""
    for j in range(n):
        largest = max(largest, load(f32, s + 4 * j) * scale)
    total = np.float32(0.0)
    for j in range(0, n, 16):
        weights = exp(load(f32x16, s + 4 * j) * splat(f32x16, scale) - splat(f32x16, largest))
        store(f32x16, weights, s + 4 * j)
        for i in range(j, min(j + 16, n)):
            total += load(f32, s + 4 * i)
    return largest, total


@jit
def _attend_head(a: Any, q: int, y: int, table: int, head: int, n: int, scores: int, sums: int) -> None:
    """One head of one token over the first n positions: an online softmax, a page at a time (Dao 2022)."""
    largest, total = np.float32(-np.inf), np.float32(0.0)
    for i in range(a.padded_value):
        store(f32, np.float32(0.0), sums + 4 * i)
    for first in range(0, n, a.page):
        page = np.int64(load(i32, table + 4 * (first // a.page)))
        rows = (page * a.kv_heads + head) * a.page
        here = min(a.page, n - first)
        invoke(a.key_scores, (q, a.keys + rows * a.key_bytes, a.key_bytes, here, a.padded_dim, scores))
        before = largest
        largest, part = _softmax_step(scores, here, np.float32(a.scale), before)
        rescale = np.exp(before - largest)
        total = total * rescale + part
        for i in range(a.padded_value):
            store(f32, load(f32, sums + 4 * i) * rescale, sums + 4 * i)
        invoke(
            a.value_mix, (scores, a.values + rows * a.value_bytes, a.value_bytes, here, a.padded_value, sums)
        )
    for i in range(a.value_dim):
        store(f32, load(f32, sums + 4 * i) / total, y + 4 * i)


@kernel
def attend(args: int, thread: int, threads: int) -> None:
    """ATTEND: y[n, heads, value_dim] = softmax(q . keys * scale) . values, over positions to the token's own."""
    a = at(ATTEND, args)
    group = a.heads // a.kv_heads
    begin, end = share(load(i64, a.n) * a.kv_heads, thread, threads, 1)
    query = np.zeros(a.padded_dim, np.float32)
    scores = np.zeros((a.page + 15) // 16 * 16, np.float32)
    sums = np.zeros(a.padded_value, np.float32)
    for i in range(begin, end):
        token, kv_head = i // a.kv_heads, i % a.kv_heads
        positions = np.int64(load(i32, a.positions + 4 * token)) + 1
        table = a.tables + 4 * a.table_stride * np.int64(load(i32, a.sequences + 4 * token))
        for head in range(kv_head * group, (kv_head + 1) * group):
            q = a.q + 4 * a.head_dim * (token * a.heads + head)
            for d in range(a.head_dim):
                query[d] = load(f32, q + 4 * d)
            y = a.y + 4 * a.value_dim * (token * a.heads + head)
            _attend_head(
                a, address_of(query), y, table, kv_head, positions, address_of(scores), address_of(sums)
            )
    query[0], scores[0], sums[0] = 0, 0, 0  # keeps them alive: Numba does not see their addresses in use
