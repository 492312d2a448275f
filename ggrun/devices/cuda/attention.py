"""How attention is launched on a card: which kernel, with how many blocks, in how many parts of the context.

All is chosen from numbers that a CUDA graph can be kept for: how many tokens there are, and a bucket of the
longest context (see `bucket`). The true lengths are read on the card.
"""

from dataclasses import dataclass
from typing import Any

PAGE = 64
"""Positions in a page of the cache."""
MOST_PARTS = 128
"""Of a context at most: what all of them leave is read by one block."""
FEW = 8
"""So many tokens at most are for flash decoding, whatever sequences they are of."""

_STORE_WARPS = 4
_BLOCK = 32  # values, to which rows of the cache are padded
_BITS = {"f32": 32, "f16": 16, "bf16": 16, "q8_0": 8.5}
_DECODE_HEADS, _DECODE_THREADS, _DECODE_PAGES = 8, 128, 2
_BLOCKS_A_MULTIPROCESSOR = 2  # that are worth more parts of the context
_SHARED = (64 << 10, 99 << 10)  # bytes that a block can have, on Turing and on all later cards


@dataclass(frozen=True)
class Shape:
    """What is known of a layer's attention when it is recorded."""

    heads: int
    kv_heads: int
    key_dim: int
    value_dim: int
    key_kind: str  # f32, f16, bf16, q8_0
    value_kind: str
    window: int = 0  # positions that a token sees; 0: all
    capped: bool = False

    @property
    def group(self) -> int:
        """The heads that share keys and values."""
        return self.heads // self.kv_heads

    def defines(self) -> dict[str, str | int]:
        """Of both kernels."""
        return {
            "KEY_KIND": self.key_kind.upper(),
            "VALUE_KIND": self.value_kind.upper(),
            "KEY_DIM": self.key_dim,
            "VALUE_DIM": self.value_dim,
            "SOFT_CAP": int(self.capped),
        }


@dataclass(frozen=True)
class AttentionLaunch:
    """A kernel and how it is launched."""

    file: str
    name: str
    defines: dict[str, Any]
    grid: tuple[int, int, int]
    block: tuple[int]
    shared: int  # bytes
    parts: int
    combines: bool  # its parts, and quantizes what comes of them; else launches that follow do both

    def scratch(self, shape: Shape, n: int) -> tuple[int, int]:
        """The bytes of `sums` and of `states` for n tokens."""
        rows = n * shape.heads * self.parts if self.parts > 1 else 0
        return 4 * rows * shape.value_dim, 8 * rows


def row_bytes(kind: str, dim: int) -> int:
    """The bytes of a row of the cache, on average: see kernels/cuda/cells.cuh for where they are."""
    return int(_ceil(dim, _BLOCK) * _BLOCK * _BITS[kind] / 8)


def store_shape(n: int, heads: int) -> tuple[tuple[int], tuple[int]]:
    """The grid and block of `store`: a warp a row."""
    return (max(1, _ceil(n * heads, _STORE_WARPS)),), (32 * _STORE_WARPS,)


def counter_bytes(multiprocessors: int) -> int:
    """The bytes of `arrived`: a counter for each token and tile of heads, where few enough for parts."""
    return 4 * multiprocessors * _BLOCKS_A_MULTIPROCESSOR


def bucket(context: int) -> int:
    """The context that launches are planned for: the next power of two, of a page at least."""
    return max(PAGE, 1 << (context - 1).bit_length())


def plan_attention(
    shape: Shape, n: int, sequences: int, context: int, arch: int, multiprocessors: int
) -> AttentionLaunch:
    """The launch for n tokens of so many sequences, of which the longest has `context` positions or fewer.

    arch: the compute capability times ten. Tokens of cells of f32 are computed one by one.
    """
    alone = n <= FEW or n < 2 * sequences
    if alone or "f32" in (shape.key_kind, shape.value_kind):
        return _decode(shape, n, context, multiprocessors)
    return _prefill(shape, n, context, arch, multiprocessors)


def _decode(shape: Shape, n: int, context: int, multiprocessors: int) -> AttentionLaunch:
    """A block has one token and 8 heads; it reads whole pages, two at least before there are more blocks."""
    heads = shape.kv_heads * _ceil(shape.group, _DECODE_HEADS)
    pages = _ceil(min(context, shape.window + PAGE) if shape.window else context, PAGE)
    wanted = _ceil(multiprocessors * _BLOCKS_A_MULTIPROCESSOR, max(n, 1) * heads)
    parts = max(1, min(wanted, _ceil(pages, _DECODE_PAGES), MOST_PARTS))
    grid = (heads, max(n, 1), parts)
    return AttentionLaunch(
        "attention_decode.cu", "attention_decode", shape.defines(), grid, (_DECODE_THREADS,), 0, parts, True
    )


def _prefill(shape: Shape, n: int, context: int, arch: int, multiprocessors: int) -> AttentionLaunch:
    """A block has as many rows, of a token and a head each, as its shared memory holds queries of."""
    key, value = (_ceil(dim, _BLOCK) * _BLOCK for dim in (shape.key_dim, shape.value_dim))
    keys = 32 if max(key, value) <= 192 else 16
    query = (3 if shape.key_kind == "bf16" and arch >= 80 else 2) * 2 * key
    rows, shared = 64, keys * (_staged(key, shape.key_kind) + _staged(value, shape.value_kind))
    while rows > 16 and shared + rows * query > _SHARED[arch >= 80]:
        rows //= 2
    heads = shape.kv_heads * _ceil(shape.group, rows)
    tokens = _ceil(n, rows // min(shape.group, rows))
    parts = max(1, min(multiprocessors // (heads * tokens), context // (4 * PAGE), MOST_PARTS))
    defines = {**shape.defines(), "BLOCK_ROWS": rows, "STEP_KEYS": keys}
    return AttentionLaunch(
        "attention_prefill.cu", "attention_prefill", defines,
        (heads, tokens, parts), (2 * rows,), shared + rows * query, parts, False,
    )  # fmt: skip


def _staged(width: int, kind: str) -> int:
    """The bytes of a row in shared memory: 16-bit floats, and scales."""
    return 2 * width + (width // _BLOCK * 2 if kind == "q8_0" else 0)


def _ceil(a: int, b: int) -> int:
    return -(-a // b)
