"""How products with many columns are cut into blocks: the host's side of kernels/cuda/matmul.cu and matmul_floats.cu."""

from dataclasses import dataclass

STEP = 64
"""Values of a row that a block takes at once; a split has at least SPLIT_STEPS of them."""
SPLIT_STEPS = 8
ROWS = 64
COLUMNS = (16, 32, 64, 128)
BLOCKS_TO_FILL = 2
"""Blocks a multiprocessor below which k is split: with fewer, memory waits for products and these for memory."""


@dataclass(frozen=True)
class Tiles:
    """One launch. A block has a thread for each half of a row's step."""

    rows: int
    columns: int
    grid: tuple[int, int, int]

    @property
    def block(self) -> int:
        """Threads."""
        return 2 * self.rows

    @property
    def splits(self) -> int:
        """In how many parts k is cut; with more than one, sum_splits adds them up."""
        return self.grid[2]

    @property
    def defines(self) -> dict[str, int]:
        """What the kernel is compiled with, besides FORMAT."""
        return {"TILE_ROWS": self.rows, "TILE_COLUMNS": self.columns}


def tiles(rows: int, k: int, n: int, multiprocessors: int) -> Tiles:
    """The tiles of a product of [rows, k] weights with n columns (0 or more)."""
    size = _columns(n)
    across, down = max(1, -(-n // size)), -(-rows // ROWS)
    room = BLOCKS_TO_FILL * multiprocessors // (across * down)
    splits = min(room, -(-k // STEP) // SPLIT_STEPS)
    return Tiles(ROWS, size, (across, down, max(1, splits)))


def expert_tiles(rows: int, pairs: int, experts: int) -> Tiles:
    """The tiles of a product of `pairs` columns with the [experts, rows, k] weights of their experts.

    How the pairs are spread only the device knows: the grid is for the worst case, where each of the experts that have
    any ends with a tile that is not full.
    """
    size = _columns(-(-pairs // experts))
    most = min(experts, pairs)  # experts that have any
    across = max(1, most + (pairs - most) // size)
    return Tiles(ROWS, size, (across, -(-rows // ROWS), 1))


def _columns(n: int) -> int:
    """The smallest tile that takes n columns at once, or the largest."""
    return next((size for size in COLUMNS if n <= size), COLUMNS[-1])
