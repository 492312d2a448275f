"""Grids and blocks of the small CUDA kernels: norm, rope, activation, rows, moe, reduce and sample.

The rules are the host's half of each kernel: the grid has a place for every piece of work, and one block at
least, as a batch may be empty. How many rows there are is also an argument of each kernel.
"""

from typing import NamedTuple

WARP = 32
KEPT = 4
"""Vectors of four floats that a thread of norm.cu keeps of its row."""
SLICE = 4096
"""Logits that a block of sample.cu looks at."""
MOST_OF_SLICE = 1024
"""The largest k of sample.cu's top_k: a block has as many threads."""
_MOST_KEPT = 4096
"""sample.cu's MOST_KEPT: candidates that a block of top_k has room for."""
MOST_EXPERTS = 16 * WARP
"""The most experts that moe.cu can choose from."""
PLACES = 8
"""The most places that reduce.cu adds up in one launch."""


class Shape(NamedTuple):
    """Blocks and threads of a launch."""

    grid: tuple[int, ...]
    block: tuple[int, ...]


def _ceil(a: int, b: int) -> int:
    """How many pieces of b are needed for a, at least one."""
    return max(1, -(-a // b))


def _threads(work: int, most: int) -> int:
    """Whole warps for so much work, a piece a thread, but at most `most`."""
    return min(most, WARP * _ceil(work, WARP))


def elements(total: int) -> Shape:
    """add, activate, activate_gated, sum, sum_bf16, narrow: four of `total` floats a thread."""
    return Shape((_ceil(total, 4 * 256),), (256,))


def norm(rows: int, width: int) -> Shape:
    """rms_norm, layer_norm: a warp a row when rows are short (heads), else a block.

    rows: of the batch times the groups of a row; width: values of a group
    """
    vectors = _ceil(width, 4)
    if vectors <= KEPT * WARP:
        return Shape((_ceil(rows, 4),), (WARP, 4))
    # Two vectors a thread leave a decoded token's only block more loads in flight than four would.
    return Shape((max(1, rows),), (_threads(_ceil(vectors, 2), 1024),))


def rope_table(n: int, dims: int) -> Shape:
    """rope_table: a block a position, a thread a pair."""
    return Shape((max(1, n),), (_threads(dims // 2, 128),))


def four_pairs(head_dim: int, dims: int) -> bool:
    """Whether a thread of rope has four pairs and not one; rope_store takes no other shapes."""
    return dims % 8 == 0 and head_dim % 4 == 0


def rope(n: int, heads: int, head_dim: int, dims: int) -> Shape:
    """rope: of so many heads, of queries and keys together."""
    work = heads * (dims // 8 if four_pairs(head_dim, dims) else dims // 2)
    threads = _threads(work, 128)
    return Shape((max(1, n), _ceil(work, threads)), (threads,))


def rope_store(n: int, heads: tuple[int, int], key_dim: int, value_dim: int, dims: int) -> Shape:
    """rope_store: warps have four pairs of queries a thread, or four blocks of 32 keys, or of values.

    heads: of queries, of keys
    """
    kept = (_ceil(heads[1] * _ceil(dim, 32), 4) for dim in (key_dim, value_dim))
    return Shape((max(1, n), _ceil(_ceil(heads[0] * dims // 8, WARP) + sum(kept), 4)), (4 * WARP,))


def rows(n: int, width: int) -> Shape:
    """pick, combine, finish: a vector of a row a thread, four floats or, in odd widths, one."""
    vectors = width // 4 if width % 4 == 0 else width
    threads = _threads(vectors, 256)
    return Shape((max(1, n), _ceil(vectors, threads)), (threads,))


def to_halves(n: int) -> Shape:
    """to_halves: a block a row."""
    return Shape((max(1, n),), (256,))


def route(n: int) -> Shape:
    """route: a warp a token."""
    return Shape((_ceil(n, 4),), (WARP, 4))


def per_lane(experts: int) -> int:
    """moe.cu's PER_LANE: the experts a lane of route looks at, a power of two, as few modules will do."""
    if not 0 < experts <= MOST_EXPERTS:
        raise ValueError(f"there are {experts} experts: there must be between 1 and {MOST_EXPERTS}")
    return 1 << (_ceil(experts, WARP) - 1).bit_length()


def sort(experts: int) -> Shape:
    """sort: a warp an expert."""
    return Shape((_ceil(experts, 4),), (WARP, 4))


def slices(n: int, width: int) -> Shape:
    """argmax: a block a slice."""
    return Shape((_ceil(width, SLICE), max(1, n)), (512,))


def of_slices(n: int, width: int) -> Shape:
    """argmax_of_slices: a block a row."""
    return Shape((max(1, n),), (_threads(_ceil(width, SLICE), 256),))


class Pass(NamedTuple):
    """A launch of top_k or top_k_of_slices.

    given  logits, or candidates, of a row
    slice  as many of these are a block's
    """

    given: int
    slice: int
    shape: Shape


def top_k(n: int, width: int, k: int) -> list[Pass]:
    """top_k, then top_k_of_slices until there is one slice: two threads, if there may be, for each of the k.

    ValueError for a k that there is no block for.
    """
    if not 0 < k <= MOST_OF_SLICE:
        raise ValueError(f"k is {k}: it must be between 1 and {MOST_OF_SLICE}")
    threads = max(128, _threads(2 * k, MOST_OF_SLICE))
    passes: list[Pass] = []
    given, size = width, SLICE
    while not passes or passes[-1].shape.grid[0] > 1:
        slices = _ceil(given, size)
        passes.append(Pass(given, size, Shape((slices, max(1, n)), (threads,))))
        given, size = slices * k, _MOST_KEPT // k * threads
    return passes
