"""Attention over a paged KV cache, as operations.

Keys and values of one layer lie as cells[page, head, position in page], a row each (see cache/). Each token
names the row of `tables` that lists the pages of its sequence, so that any mix of sequences is one batch.
"""

from typing import Any

import numpy as np

from .flash import BLOCK, attend_run
from .functions import softmax_step
from .runtime import Struct, at, invoke, jit, kernel, share
from .simd import address_of, f32, i32, i64, load, store

STORE_CELLS = Struct("n x heads head_dim slots page cells row_bytes write")
ATTEND = Struct(
    "n q y heads kv_heads head_dim value_dim padded_dim padded_value positions sequences tables "
    "table_stride page keys key_bytes key_scores key_unpack values value_bytes value_mix value_unpack scale:f"
)

FEW = 4  # tokens, from which on unpacking a page for all of them is faster


@kernel
def store_cells(args: int, thread: int, threads: int) -> None:
    """STORE_CELLS: x[n, heads, head_dim] into the cells of each token's slot (page * page size + offset)."""
    a = at(STORE_CELLS, args)
    begin, end = share(load(i64, a.n) * a.heads, thread, threads, 1)
    for i in range(begin, end):
        slot, head = np.int64(load(i32, a.slots + 4 * (i // a.heads))), i % a.heads
        row = ((slot // a.page) * a.heads + head) * a.page + slot % a.page
        invoke(a.write, (a.x + 4 * a.head_dim * i, a.cells + row * a.row_bytes, a.head_dim))


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
        largest, part = softmax_step(scores, here, np.float32(a.scale), before)
        rescale = np.exp(before - largest)
        total = total * rescale + part
        for i in range(a.padded_value):
            store(f32, load(f32, sums + 4 * i) * rescale, sums + 4 * i)
        invoke(
            a.value_mix, (scores, a.values + rows * a.value_bytes, a.value_bytes, here, a.padded_value, sums)
        )
    for i in range(a.value_dim):
        store(f32, load(f32, sums + 4 * i) / total, y + 4 * i)


@jit
def _attend_token(a: Any, token: int, kv_head: int) -> None:
    """One token, one group of heads: keys and values are read in their own form."""
    group = a.heads // a.kv_heads
    query, sums = np.zeros(a.padded_dim, np.float32), np.empty(a.padded_value, np.float32)
    scores = np.empty(a.page, np.float32)
    positions = np.int64(load(i32, a.positions + 4 * token)) + 1
    table = a.tables + 4 * a.table_stride * np.int64(load(i32, a.sequences + 4 * token))
    for head in range(kv_head * group, (kv_head + 1) * group):
        q = a.q + 4 * a.head_dim * (token * a.heads + head)
        for d in range(a.head_dim):
            query[d] = load(f32, q + 4 * d)
        y = a.y + 4 * a.value_dim * (token * a.heads + head)
        _attend_head(a, address_of(query), y, table, kv_head, positions, address_of(scores), address_of(sums))
    query[0], scores[0], sums[0] = 0, 0, 0  # keeps them alive: Numba does not see their addresses in use


@jit
def _run_length(a: Any, token: int, end: int) -> int:
    """How many tokens from this one on follow each other in one sequence."""
    length = 1
    while token + length < end:
        at_next = 4 * (token + length)
        if load(i32, a.sequences + at_next) != load(i32, a.sequences + 4 * token):
            break
        if load(i32, a.positions + at_next) != load(i32, a.positions + 4 * token) + length:
            break
        length += 1
    return length


@kernel
def attend(args: int, thread: int, threads: int) -> None:
    """ATTEND: y[n, heads, value_dim] = softmax(q . keys * scale) . values, up to each token's position."""
    a = at(ATTEND, args)
    n, group = load(i64, a.n), a.heads // a.kv_heads
    block = max(1, BLOCK // group)
    begin, end = share((n + block - 1) // block * a.kv_heads, thread, threads, 1)
    for item in range(begin, end):
        token, kv_head = item // a.kv_heads * block, item % a.kv_heads
        stop = min(n, token + block)
        while token < stop:
            length = _run_length(a, token, stop)
            if length * group >= FEW:
                attend_run(a, token, length, kv_head)
            else:
                for i in range(length):
                    _attend_token(a, token + i, kv_head)
            token += length
