"""How products with many columns are cut into blocks: the host's side of matmul.cu and matmul_floats.cu.

The constants are what the kernels' registers and shared memory allow; none was tuned on a card.
"""

from dataclasses import dataclass

THREADS_A_ROW = 2
STEP = 64
"""Values of k that a block takes at once; each part that k is split into has SPLIT_STEPS of them, or more."""
SPLIT_STEPS = 8
WAVE = 2
"""Blocks a multiprocessor that are wanted: k is split where there are fewer."""
LARGE = 128
"""Rows and columns of a large tile: it loads half as much a product, but one fills a multiprocessor."""
ROWS, COLUMNS = 64, (16, 32, 64)
"""Those of the others."""
TWO_SCALES = ("Q2_K", "Q3_K", "Q6_K", "TQ2_0", "IQ2_XS", "IQ2_S", "IQ1_M")
"""Formats with two scales for 32 values: a thread has not the registers for its part of a large tile."""


@dataclass(frozen=True)
class Tiles:
    """One launch: tiles of `rows` by `columns`, the kernel's grid, the threads of a block."""

    rows: int
    columns: int
    grid: tuple[int, int, int]

    @property
    def block(self) -> int:
        """Threads."""
        return THREADS_A_ROW * self.rows

    @property
    def splits(self) -> int:
        """The parts of k; with several, `sum_splits` of split_k.cu adds up what they leave."""
        return self.grid[2]


def matmul_tiles(name: str, rows: int, k: int, n: int, multiprocessors: int) -> Tiles:
    """For `matmul`: [rows, k] weights of the format `name` times n columns (which may be 0)."""
    large = _grid(rows, n, LARGE, LARGE)
    if name not in TWO_SCALES and n > COLUMNS[-1] and large[0] * large[1] >= multiprocessors:
        return Tiles(LARGE, LARGE, large)
    return float_tiles(rows, k, n, multiprocessors)


def float_tiles(rows: int, k: int, n: int, multiprocessors: int) -> Tiles:
    """For `matmul_floats`: [rows, k] weights times n columns; its TILE_ROWS is not for choice."""
    columns = _columns(n)
    across, down, _ = _grid(rows, n, ROWS, columns)
    parts = min(WAVE * multiprocessors // (across * down), k // (STEP * SPLIT_STEPS))
    return Tiles(ROWS, columns, (across, down, max(1, parts)))


def expert_tiles(rows: int, pairs: int, experts: int) -> Tiles:
    """For `matmul_experts` and `matmul_floats_experts`: `pairs` columns, each times its expert's [rows, k].

    How many are each expert's, only the device knows. The grid is for the worst case, where as many experts
    as can be have a pair, and all others are one expert's: blocks that have no tile end at once.
    """
    columns = _columns(-(-pairs // experts))
    some = min(experts, pairs)
    across = some + (pairs - some) // columns
    return Tiles(ROWS, columns, (max(1, across), -(-rows // ROWS), 1))


def _columns(n: int) -> int:
    """Of a tile: as few as take all n, or the most."""
    return next((columns for columns in COLUMNS if n <= columns), COLUMNS[-1])


def _grid(rows: int, n: int, tile_rows: int, tile_columns: int) -> tuple[int, int, int]:
    return max(1, -(-n // tile_columns)), -(-rows // tile_rows), 1
