"""The steps between products and attention: heads are rotated, keys and values go to the cache."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ggrun.devices.base import Cells
from ggrun.devices.cuda import grids
from ggrun.devices.cuda.attention import store_shape
from ggrun.devices.cuda.driver import Driver
from ggrun.devices.cuda.program import Counts, Launch


@dataclass(frozen=True)
class Heads:
    """So many heads of each row, and the table of angles that rotates them: addresses."""

    x: int = 0
    table: int = 0
    count: int = 0


@dataclass(frozen=True)
class Rope:
    """A step: heads are rotated in place, those of queries and of keys in one launch."""

    driver: Driver
    queries: Heads
    head_dim: int
    dims: int
    neighbours: bool
    keys: Heads = Heads()

    @staticmethod
    def of(before: Any, step: "Rope") -> "Rope | None":
        """Of two steps, if one launch can do both."""
        if not isinstance(before, Rope) or before.keys.count or before.queries.x == step.queries.x:
            return None
        alike = replace(step, queries=before.queries) == before
        return replace(before, keys=step.queries) if alike else None

    def __call__(self, counts: Counts) -> list[Launch]:
        """One launch."""
        n, q, k = counts.tokens, self.queries, self.keys
        kernel = self.driver.kernel("rope.cu", "rope")
        shape = grids.rope(n, q.count + k.count, self.head_dim, self.dims)
        heads = q.x, q.table, np.int32(q.count), k.x, k.table, np.int32(k.count)
        sizes = (np.int32(size) for size in (n, self.head_dim, self.dims, self.neighbours))
        return [Launch(kernel, *shape, (*heads, *sizes))]


@dataclass(frozen=True)
class Store:
    """A step: rows of keys or values go to the slots of some cells."""

    driver: Driver
    x: int
    slots: int
    cells: Cells

    def __call__(self, counts: Counts) -> list[Launch]:
        """One launch."""
        n, cells = counts.tokens, self.cells
        kernel = self.driver.kernel("store.cu", "store", KIND=cells.kind.upper())
        sizes = np.int32(n), np.int32(cells.heads), np.int32(cells.dim)
        where = self.x, self.slots, cells.memory.address
        return [Launch(kernel, *store_shape(n, cells.heads), (*where, *sizes))]


@dataclass(frozen=True)
class RopeStore:
    """A step: queries are rotated in place, keys on their way to the cache, where values go too."""

    rope: Rope
    keys: Store
    values: Store

    @staticmethod
    def of(rope: Any, keys: Any, values: Store) -> "RopeStore | None":
        """Of three steps, if one launch can do all of it."""
        if not isinstance(rope, Rope) or not isinstance(keys, Store):
            return None
        kept = keys.cells.heads, keys.cells.dim
        same = (rope.keys.x, rope.keys.count, rope.head_dim) == (keys.x, *kept)
        apart = values.x not in (rope.queries.x, keys.x) and values.cells.heads == keys.cells.heads
        if same and apart and grids.four_pairs(rope.head_dim, rope.dims):
            return RopeStore(rope, keys, values)
        return None

    def __call__(self, counts: Counts) -> list[Launch]:
        """One launch."""
        n, rope, keys, values = counts.tokens, self.rope, self.keys.cells, self.values.cells
        kinds = {"KEYS": keys.kind.upper(), "VALUES": values.kind.upper()}
        kernel = rope.driver.kernel("rope_store.cu", "rope_store", **kinds)
        heads = rope.queries.count, keys.heads
        shape = grids.rope_store(n, heads, keys.dim, values.dim, rope.dims)
        read = rope.queries.x, rope.queries.table, rope.keys.x, rope.keys.table, self.values.x
        where = self.keys.slots, keys.memory.address, values.memory.address
        numbers = n, *heads, keys.dim, values.dim, rope.dims, rope.neighbours
        return [Launch(kernel, *shape, (*read, *where, *(np.int32(number) for number in numbers)))]
