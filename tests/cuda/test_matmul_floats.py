"""kernels/cuda/matmul_floats.cu: F32, F16 and BF16 weights times many columns, against numpy float64."""

import numpy as np
import pytest
from numpy.typing import NDArray

from ggrun.devices.cuda.tiles import ROWS, Tiles, expert_tiles, float_tiles
from tests.cuda.conftest import Card
from tests.cuda.test_matmul import ONE_CARD, TWO_CARDS, assert_close
from tests.cuda.weights import exact, random_rows

CLOSE = 2e-6


class Case:
    """Weights, columns, and their products."""

    def __init__(self, name: str, rows: int, k: int, n: int, experts: int = 1) -> None:
        rng = np.random.default_rng(rows * n + k)
        self.name, self.k, self.rows, self.n = name, k, rows, n
        self.w = random_rows(name, experts * rows, k, rng)
        self.x = rng.standard_normal((n, k)).astype(np.float32)
        self.exact = exact(name, self.w).reshape(experts, rows, k)

    @property
    def right(self) -> NDArray[np.float64]:
        return self.x.astype(np.float64) @ self.exact[0].T

    def run(
        self, card: Card, cut: Tiles, scale: float = 1.0, bias: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        y = card.empty((self.n, self.rows), np.float32)
        partial = card.empty((cut.splits, self.n, self.rows), np.float32) if cut.splits > 1 else y
        after = [np.float32(scale), 0 if bias is None else card.array(bias)]
        card.run(
            "matmul_floats.cu", "matmul_floats", cut.grid, cut.block,
            [card.array(self.w), np.int32(self.rows), np.int32(self.k), card.array(self.x), np.int32(self.n),
             partial, *(after if cut.splits == 1 else [np.float32(1.0), 0])],
            FORMAT=self.name, TILE_COLUMNS=cut.columns,
        )  # fmt: skip
        if cut.splits > 1:
            sizes = [np.int32(size) for size in (cut.splits, self.n, self.rows)]
            card.run("split_k.cu", "sum_splits", (2, self.n), 128, [partial, *sizes, y, *after])
        return card.read(y)


@TWO_CARDS
@pytest.mark.parametrize("name", ["F32", "F16", "BF16"])
@pytest.mark.parametrize(("columns", "k"), [(16, 256), (16, 77), (32, 100), (64, 40), (64, 1)])
def test_every_format_and_tile(card: Card, name: str, columns: int, k: int) -> None:
    case = Case(name, 70, k, columns + 5)
    assert_close(case.run(card, Tiles(ROWS, columns, (2, 2, 1))), case.right, CLOSE)


@TWO_CARDS
@pytest.mark.parametrize(("rows", "n"), [(1, 9), (1, 1), (64, 8), (65, 16), (7, 513), (40, 0)])
def test_odd_sizes(card: Card, rows: int, n: int) -> None:
    case = Case("BF16", rows, 72, n)
    assert_close(case.run(card, float_tiles(rows, 72, n, 4)), case.right, CLOSE)


@ONE_CARD
@pytest.mark.parametrize("splits", [1, 2, 5])
def test_scale_bias_and_splits(card: Card, splits: int) -> None:
    case = Case("F16", 70, 136, 20)
    bias = np.random.default_rng(1).standard_normal(70).astype(np.float32)
    got = case.run(card, Tiles(ROWS, 32, (1, 2, splits)), 0.5, bias)
    assert_close(got, 0.5 * case.right + bias, CLOSE)


@ONE_CARD
def test_long_sums(card: Card) -> None:
    case = Case("BF16", 64, 14336, 16)
    assert_close(case.run(card, Tiles(ROWS, 16, (1, 1, 1))), case.right)


@TWO_CARDS
@pytest.mark.parametrize("gather", [False, True])
@pytest.mark.parametrize("counts", [[20], [0, 17, 0, 1, 33], [0, 0]], ids=["one", "uneven", "empty"])
def test_experts(card: Card, counts: list[int], gather: bool) -> None:
    pairs, rng = sum(counts), np.random.default_rng(2)
    case = Case("F16", 66, 100, 6 if gather else pairs, len(counts))
    tokens = rng.integers(0, 6, pairs, np.int32) if gather else np.arange(pairs)
    scales = rng.standard_normal(len(counts)).astype(np.float32)
    cut = expert_tiles(66, pairs, len(counts))
    y = card.empty((pairs, 66), np.float32)
    card.run(
        "matmul_floats.cu", "matmul_floats_experts", cut.grid, cut.block,
        [card.array(case.w), np.int32(66), np.int32(100), card.array(case.x),
         card.array(np.cumsum([0, *counts]).astype(np.int32)), np.int32(len(counts)),
         card.array(tokens) if gather else 0, y, card.array(scales) if gather else 0],
        FORMAT="F16", TILE_COLUMNS=cut.columns,
    )  # fmt: skip
    which = np.repeat(np.arange(len(counts)), counts)
    right = np.einsum("pk,prk->pr", case.x.astype(np.float64)[tokens], case.exact[which])
    assert_close(card.read(y), right * scales[which, None] if gather else right, CLOSE)
