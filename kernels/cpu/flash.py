"""Attention of many queries at once: the tokens of a prompt share every page of keys and values.

A page is unpacked to floats once for all queries of a block of tokens and a group of heads; scores and
weighted sums are products of tiles; the softmax is online, a page at a time (FlashAttention, Dao et al.
2022), so that no row of scores is longer than a page.
"""

from typing import Any

import numpy as np

from .functions import softmax_step
from .runtime import invoke, jit
from .simd import address_of, f32, f32x16, i32, load, splat, store
from .tiles import FLOATS_TILE, Number, Shape, tile_add, tile_fma, tile_store, tile_zero, transpose

_TILE = Shape(*FLOATS_TILE)
_QUERIES, _LANES = _TILE.columns, 16 * _TILE.groups
_SIXTEEN = Number(16)
BLOCK = 192
"""Queries that share an unpacked page."""


@jit
def _transpose_keys(a: Any, raw: int, n: int, keys: int) -> None:
    """n positions (and more, up to 16) of [page, dim] to [dim, page]."""
    for j in range(0, n, 16):
        for i in range(0, a.padded_dim, 16):
            source, target = raw + 4 * (j * a.padded_dim + i), keys + 4 * (i * a.page + j)
            transpose(source, 4 * a.padded_dim, target, 4 * a.page, _SIXTEEN)


@jit
def _unpack_page(a: Any, rows: int, n: int, raw: int, keys: int, values: int) -> None:
    """n positions of a page of cells."""
    invoke(a.key_unpack, (a.keys + rows * a.key_bytes, a.key_bytes, n, a.padded_dim, raw))
    _transpose_keys(a, raw, n, keys)
    invoke(a.value_unpack, (a.values + rows * a.value_bytes, a.value_bytes, n, a.padded_value, values))


@jit
def _products(
    w: int, w_stride: int, k: int, lanes: int, x: int, x_stride: int, y: int, y_stride: int, add: bool
) -> None:
    """y[_QUERIES, lanes] (+)= x[_QUERIES, k] . w[k, lanes]; strides in bytes, lanes up to the next _LANES."""
    for lane in range(0, lanes, _LANES):
        tile = tile_zero(_TILE, f32x16)
        for i in range(k):
            tile = tile_fma(_TILE, tile, w + i * w_stride + 4 * lane, x + 4 * i, x_stride)
        if add:
            tile_add(_TILE, tile, y + 4 * lane, y_stride)
        else:
            tile_store(_TILE, tile, y + 4 * lane, y_stride)


@jit
def _softmax_row(a: Any, scores: int, n: int, valid: int, state: int, sums: int) -> None:
    """n scores of a query to weights, zero from `valid` on; its sums and state (max, total) follow."""
    if valid > 0:
        before, total = load(f32, state), load(f32, state + 4)
        largest, part = softmax_step(scores, valid, np.float32(a.scale), before)
        if largest != before:
            rescale = np.exp(before - largest)
            total *= rescale
            store(f32, largest, state)
            for i in range(0, a.padded_value, 16):
                store(f32x16, load(f32x16, sums + 4 * i) * splat(f32x16, rescale), sums + 4 * i)
        store(f32, total + part, state + 4)
    for j in range(max(valid, 0), n):
        store(f32, np.float32(0.0), scores + 4 * j)


@jit
def copy_row(x: int, y: int, n: int, scale: np.float32) -> None:
    """n floats at x, times scale, to y."""
    whole = n // 16 * 16
    for i in range(0, whole, 16):
        store(f32x16, load(f32x16, x + 4 * i) * splat(f32x16, scale), y + 4 * i)
    for i in range(whole, n):
        store(f32, load(f32, x + 4 * i) * scale, y + 4 * i)


@jit
def _load_queries(a: Any, token: int, tokens: int, kv_head: int, group: int, queries: int) -> None:
    """The heads of a group, of some tokens, as rows padded with zeros: [token, head of the group]."""
    for i in range(tokens * group):
        head = kv_head * group + i % group
        q = a.q + 4 * a.head_dim * ((token + i // group) * a.heads + head)
        copy_row(q, queries + 4 * i * a.padded_dim, a.head_dim, np.float32(1.0))
        for d in range(a.head_dim, a.padded_dim):
            store(f32, np.float32(0.0), queries + 4 * (i * a.padded_dim + d))


@jit
def _store_sums(a: Any, token: int, tokens: int, kv_head: int, group: int, sums: int, state: int) -> None:
    """The finished sums, divided by their totals, to y."""
    for i in range(tokens * group):
        head = kv_head * group + i % group
        y = a.y + 4 * a.value_dim * ((token + i // group) * a.heads + head)
        total = load(f32, state + 8 * i + 4)
        copy_row(sums + 4 * i * a.padded_value, y, a.value_dim, np.float32(1.0) / total)


@jit
def attend_run(a: Any, token: int, tokens: int, kv_head: int) -> None:
    """Consecutive tokens of one sequence, one group of heads. a: ATTEND."""
    group = a.heads // a.kv_heads
    rows = (tokens * group + _QUERIES - 1) // _QUERIES * _QUERIES
    queries, sums = np.zeros((rows, a.padded_dim), np.float32), np.zeros((rows, a.padded_value), np.float32)
    states = np.zeros((rows, 2), np.float32)
    states[:, 0] = -np.inf
    raw, keys = np.empty((a.page, a.padded_dim), np.float32), np.empty((a.padded_dim, a.page), np.float32)
    values, scores = np.empty((a.page, a.padded_value), np.float32), np.empty((_QUERIES, a.page), np.float32)
    q, o, s, w = address_of(queries), address_of(sums), address_of(scores), address_of(states)
    _load_queries(a, token, tokens, kv_head, group, q)
    first_position = np.int64(load(i32, a.positions + 4 * token))
    table = a.tables + 4 * a.table_stride * np.int64(load(i32, a.sequences + 4 * token))
    end = first_position + tokens
    for first in range(0, end, a.page):
        page = np.int64(load(i32, table + 4 * (first // a.page)))
        cells = (page * a.kv_heads + kv_head) * a.page
        _unpack_page(
            a, cells, min(a.page, end - first), address_of(raw), address_of(keys), address_of(values)
        )
        for tile in range(0, tokens * group, _QUERIES):
            last = min(tile + _QUERIES, tokens * group) - 1
            if first_position + last // group < first:
                continue  # these tokens come before the page
            x, y = q + 4 * a.padded_dim * tile, o + 4 * a.padded_value * tile
            n = min(a.page, first_position + last // group + 1 - first)  # positions that any of them sees
            _products(
                address_of(keys), 4 * a.page, a.padded_dim, n, x, 4 * a.padded_dim, s, 4 * a.page, False
            )
            for i in range(_QUERIES):
                seen = first_position + (tile + i) // group + 1 - first if tile + i <= last else 0
                _softmax_row(
                    a, s + 4 * a.page * i, n, min(n, seen), w + 8 * (tile + i), y + 4 * a.padded_value * i
                )
            _products(
                address_of(values), 4 * a.padded_value, n, a.padded_value, s, 4 * a.page, y,
                4 * a.padded_value, True,
            )  # fmt: skip
    _store_sums(a, token, tokens, kv_head, group, o, w)
    # Keeps them alive until here: Numba does not see their addresses in use.
    queries[0, 0], sums[0, 0], states[0, 0] = 0, 0, 0
    raw[0, 0], keys[0, 0], values[0, 0], scores[0, 0] = 0, 0, 0, 0
