"""kernels/cuda/matmul.cu: quantized weights times many columns, against numpy float64 with the same bytes."""

import numpy as np
import pytest
from numpy.typing import NDArray

from ggrun.devices.cuda.tiles import LARGE, ROWS, Tiles, expert_tiles, matmul_tiles
from tests.cuda.conftest import Card
from tests.cuda.weights import exact, quantized, random_rows, values

FORMATS = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "MXFP4"]
FORMATS += ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS", "TQ1_0", "TQ2_0"]
TWO_CARDS = pytest.mark.parametrize("card", ["750-forward", "800-random"], indirect=True)
ONE_CARD = pytest.mark.parametrize("card", ["800-random"], indirect=True)
CLOSE = 2e-6
"""Of the root of the mean square. Both sides have the same bytes, so only the rounding of sums is left: that
is much less than the 1e-3 asked for, and a value that is missing shows."""


class Case:
    """Weights, columns, and the products of what both stand for."""

    def __init__(self, name: str, rows: int, k: int, n: int, experts: int = 1) -> None:
        rng = np.random.default_rng(rows * n + k)
        self.name, self.k, self.rows, self.n = name, k, rows, n
        self.w = random_rows(name, experts * rows, k, rng)
        self.x = quantized(rng.standard_normal((n, k)).astype(np.float32))
        self.exact = exact(name, self.w).reshape(experts, rows, k)

    @property
    def values(self) -> NDArray[np.float64]:
        """What the columns stand for."""
        return values(self.x, self.k) if len(self.x) else np.zeros((0, self.k))

    @property
    def right(self) -> NDArray[np.float64]:
        return self.values @ self.exact[0].T

    def run(
        self, card: Card, cut: Tiles, scale: float = 1.0, bias: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """What the kernels make of it: [n, rows]."""
        y = card.empty((self.n, self.rows), np.float32)
        partial = card.empty((cut.splits, self.n, self.rows), np.float32) if cut.splits > 1 else y
        after = [np.float32(scale), 0 if bias is None else card.array(bias)]
        card.run(
            "matmul.cu", "matmul", cut.grid, cut.block,
            [card.array(self.w), np.int32(self.rows), np.int32(self.k), card.array(self.x), np.int32(self.n),
             partial, *(after if cut.splits == 1 else [np.float32(1.0), 0])],
            FORMAT=self.name, TILE_ROWS=cut.rows, TILE_COLUMNS=cut.columns,
        )  # fmt: skip
        if cut.splits > 1:
            sizes = [np.int32(size) for size in (cut.splits, self.n, self.rows)]
            card.run("split_k.cu", "sum_splits", (2, self.n), 128, [partial, *sizes, y, *after])
        return card.read(y)


def tiles_of(case: Case, columns: int, splits: int = 1) -> Tiles:
    rows = LARGE if columns == LARGE else ROWS
    return Tiles(rows, columns, (max(1, -(-case.n // columns)), -(-case.rows // rows), splits))


def assert_close(got: NDArray[np.float32], right: NDArray[np.float64], bar: float = CLOSE) -> None:
    assert got.shape == right.shape
    error = np.abs(got - right).max(initial=0.0)
    assert error <= bar * np.sqrt(np.square(right).mean() if right.size else 1.0)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format(card: Card, name: str) -> None:
    case = Case(name, 70, 512, 11)
    assert_close(case.run(card, tiles_of(case, 16)), case.right)


@TWO_CARDS
@pytest.mark.parametrize(
    ("name", "columns"),
    [(name, columns) for name in ("Q8_0", "Q4_K", "Q6_K", "Q2_K") for columns in (16, 32, 64)]
    + [("Q8_0", LARGE), ("Q4_K", LARGE)],
)
def test_every_tile(card: Card, name: str, columns: int) -> None:
    case = Case(name, 131, 256, columns + 9)
    assert_close(case.run(card, tiles_of(case, columns)), case.right)


@TWO_CARDS
@pytest.mark.parametrize(("rows", "n"), [(1, 9), (1, 1), (64, 8), (65, 16), (7, 513), (40, 0)])
def test_odd_sizes(card: Card, rows: int, n: int) -> None:
    case = Case("Q5_K", rows, 256, n)
    assert_close(case.run(card, matmul_tiles("Q5_K", rows, 256, n, 4)), case.right)


@TWO_CARDS
@pytest.mark.parametrize("k", [32, 64, 96, 352])
def test_odd_numbers_of_groups(card: Card, k: int) -> None:
    case = Case("Q5_1", 66, k, 20)
    assert_close(case.run(card, tiles_of(case, 32)), case.right)


@ONE_CARD
@pytest.mark.parametrize("splits", [1, 2, 5])
def test_scale_bias_and_splits(card: Card, splits: int) -> None:
    case = Case("Q4_0", 70, 352, 20)
    bias = np.random.default_rng(1).standard_normal(70).astype(np.float32)
    got = case.run(card, tiles_of(case, 32, splits), 0.5, bias)
    assert_close(got, 0.5 * case.right + bias)


@TWO_CARDS
def test_the_largest_products_are_exact(card: Card) -> None:
    case = Case("Q8_0", 64, 64, 16)
    w = np.full((64, 2, 34), 0x80, np.uint8)  # bytes of -128
    w[:, :, :2] = np.full(1, 1.0, np.float16).view(np.uint8)
    case.w, case.x = w.reshape(64, -1), quantized(np.full((16, 64), 1.0, np.float32))
    d = case.values[0, 0] / 127
    np.testing.assert_array_equal(case.run(card, tiles_of(case, 16)), np.float32(2 * d * -128 * 127 * 32))


@ONE_CARD
def test_what_is_no_number_stays_where_it_is(card: Card) -> None:
    case = Case("Q6_K", 70, 256, 20)
    right = case.right
    case.x[3, case.k :].view(np.float32)[:] = np.nan
    case.w[5, 208:210] = 0xFF
    got = case.run(card, tiles_of(case, 32))
    assert np.isnan(got[3]).all()
    assert np.isnan(got[:, 5]).all()
    rows, columns = np.delete(np.arange(70), 5), np.delete(np.arange(20), 3)
    assert_close(got[np.ix_(columns, rows)], right[np.ix_(columns, rows)])


def run_experts(
    card: Card,
    case: Case,
    counts: list[int],
    tokens: NDArray[np.int32] | None,
    scales: NDArray[np.float32] | None,
) -> NDArray[np.float32]:
    starts = np.cumsum([0, *counts]).astype(np.int32)
    pairs = int(starts[-1])
    cut = expert_tiles(case.rows, pairs, len(counts))
    y = card.empty((pairs, case.rows), np.float32)
    card.run(
        "matmul.cu", "matmul_experts", cut.grid, cut.block,
        [card.array(case.w), np.int32(case.rows), np.int32(case.k), card.array(case.x), card.array(starts),
         np.int32(len(counts)), 0 if tokens is None else card.array(tokens), y,
         0 if scales is None else card.array(scales)],
        FORMAT=case.name, TILE_ROWS=cut.rows, TILE_COLUMNS=cut.columns,
    )  # fmt: skip
    return card.read(y)


@TWO_CARDS
@pytest.mark.parametrize(
    "counts",
    [[20], [0, 17, 0, 1, 33], [0, 0], [1] * 5 + [0] * 60 + [2, 0, 18], [16, 16]],
    ids=["one", "uneven", "empty", "many", "even"],
)
@pytest.mark.parametrize("gather", [False, True])
def test_experts(card: Card, counts: list[int], gather: bool) -> None:
    pairs, rng = sum(counts), np.random.default_rng(2)
    case = Case("Q4_K", 66, 256, 6 if gather else pairs, len(counts))
    tokens = rng.integers(0, 6, pairs, np.int32) if gather else None
    scales = rng.standard_normal(len(counts)).astype(np.float32) if gather else None
    got = run_experts(card, case, counts, tokens, scales)
    x = case.values[tokens if gather else np.arange(pairs)]
    which = np.repeat(np.arange(len(counts)), counts)
    right = np.einsum("pk,prk->pr", x, case.exact[which])
    assert_close(got, right if scales is None else right * scales[which, None])


def test_the_grid_of_experts_is_never_too_small() -> None:
    rng = np.random.default_rng(3)
    for _ in range(300):
        experts, pairs = int(rng.integers(1, 40)), int(rng.integers(0, 700))
        uneven = rng.dirichlet(np.full(experts, rng.choice([0.05, 1.0])))
        cut = expert_tiles(64, pairs, experts)
        counts = rng.multinomial(pairs, uneven)
        assert cut.grid[0] >= sum(-(-count // cut.columns) for count in counts)


@pytest.mark.parametrize("multiprocessors", [4, 132])
@pytest.mark.parametrize("n", [0, 1, 16, 17, 64, 65, 513])
@pytest.mark.parametrize(("rows", "k"), [(1, 32), (4096, 4096), (1024, 14336), (151936, 2048)])
def test_tiles_cover_the_matrix(rows: int, k: int, n: int, multiprocessors: int) -> None:
    cut = matmul_tiles("Q4_K", rows, k, n, multiprocessors)
    across, down, splits = cut.grid
    assert across * cut.columns >= n > (across - 1) * cut.columns or n == 0
    assert down * cut.rows >= rows > (down - 1) * cut.rows
    assert 1 <= splits <= max(1, k // 512)
