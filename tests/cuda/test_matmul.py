"""kernels/cuda/matmul.cu: quantized weights times many columns, against numpy float64 with the same bytes."""

import numpy as np
import pytest

from ggrun.devices.cuda.matvec import FLOATS
from ggrun.devices.cuda.tiles import LARGE, expert_tiles, matmul_tiles
from tests.cuda.conftest import AMPERE, TURING, Card
from tests.cuda.products import Case, assert_close
from tests.cuda.weights import FORMATS, exact, extreme_rows, quantized
from tests.thinned import diagonal

QUANTIZED = [name for name in FORMATS if name not in FLOATS]
WAYS = ["Q8_0", "Q4_K", "Q6_K", "Q2_K"]
"""A format for each way of adding up: one scale for 32 values or two, without an offset or with."""
TWO_CARDS = pytest.mark.parametrize("card", ["750-forward", "800-random"], indirect=True)
ONE_CARD = pytest.mark.parametrize("card", ["800-random"], indirect=True)


@pytest.mark.parametrize(
    ("card", "name"), diagonal(TURING, QUANTIZED) + diagonal(AMPERE, QUANTIZED), indirect=["card"]
)
def test_every_format(card: Card, name: str) -> None:
    for case in Case(name, 70, 512, 11), Case(name, 7, 256, 513), Case(name, 7, 256, 0):
        assert_close(case.run(card, case.tiles(16)), case.right)


@TWO_CARDS
@pytest.mark.parametrize(
    ("name", "columns"),
    [(name, columns) for name in WAYS for columns in (16, 32, 64)] + [("Q8_0", LARGE), ("Q4_K", LARGE)],
)
def test_every_tile(card: Card, name: str, columns: int) -> None:
    case = Case(name, 131, 256, columns + 9)
    assert_close(case.run(card, case.tiles(columns)), case.right)


@pytest.mark.parametrize(("rows", "n"), [(1, 9), (1, 1), (64, 8), (65, 16), (7, 513), (40, 0)])
def test_odd_sizes(card: Card, rows: int, n: int) -> None:
    case = Case("Q5_K", rows, 256, n)
    assert_close(case.run(card, matmul_tiles("Q5_K", rows, 256, n, 4)), case.right)


@TWO_CARDS
@pytest.mark.parametrize("k", [32, 64, 96, 352])
def test_odd_numbers_of_groups(card: Card, k: int) -> None:
    case = Case("Q5_1", 66, k, 20)
    assert_close(case.run(card, case.tiles(32)), case.right)


@ONE_CARD
@pytest.mark.parametrize("splits", [1, 2, 5])
def test_scale_bias_and_splits(card: Card, splits: int) -> None:
    case = Case("Q4_0", 70, 352, 20)
    bias = np.random.default_rng(1).standard_normal(70).astype(np.float32)
    assert_close(case.run(card, case.tiles(32, splits), 0.5, bias), 0.5 * case.right + bias)


@TWO_CARDS
def test_the_largest_products_are_exact(card: Card) -> None:
    case = Case("Q8_0", 64, 64, 16)
    w = np.full((64, 2, 34), 0x80, np.uint8)  # bytes of -128
    w[:, :, :2] = np.full(1, 1.0, np.float16).view(np.uint8)
    case.w, case.x = w.reshape(64, -1), quantized(np.full((16, 64), 1.0, np.float32))
    d = case.values[0, 0] / 127
    np.testing.assert_array_equal(case.run(card, case.tiles(16)), np.float32(2 * d * -128 * 127 * 32))


@ONE_CARD
@pytest.mark.parametrize("name", [*WAYS, "IQ4_NL"])
def test_extreme_scales(card: Card, name: str) -> None:
    case = Case(name, 12, 256, 9)
    case.w = extreme_rows(name, 256)
    case.exact = exact(name, case.w)[None]
    for got, right in zip(case.run(card, case.tiles(16)).T, case.right.T, strict=True):
        assert_close(got, right)


@ONE_CARD
def test_what_is_no_number_stays_where_it_is(card: Card) -> None:
    case = Case("Q6_K", 70, 256, 20)
    right = case.right
    case.x[3, case.k :].view(np.float32)[:] = np.nan
    case.w[5, 208:210] = 0xFF
    got = case.run(card, case.tiles(32))
    assert np.isnan(got[3]).all()
    assert np.isnan(got[:, 5]).all()
    rows, columns = np.delete(np.arange(70), 5), np.delete(np.arange(20), 3)
    assert_close(got[np.ix_(columns, rows)], right[np.ix_(columns, rows)])


@TWO_CARDS
@pytest.mark.parametrize(
    "counts",
    [[20], [0, 17, 0, 1, 33], [0, 0], [1] * 5 + [0] * 60 + [2, 0, 18], [16, 16]],
    ids=["one", "uneven", "empty", "many", "even"],
)
def test_experts(card: Card, counts: list[int]) -> None:
    case = Case("Q4_K", 66, 256, sum(counts), len(counts))
    assert_close(case.run_experts(card, counts), case.right_experts(counts, None, None))


@TWO_CARDS
def test_experts_take_their_columns_from_tokens(card: Card) -> None:
    counts, rng = [0, 17, 0, 1, 33], np.random.default_rng(2)
    tokens, scales = rng.integers(0, 6, 51, np.int32), rng.standard_normal(5).astype(np.float32)
    case = Case("Q4_K", 66, 256, 6, len(counts))
    got = case.run_experts(card, counts, tokens, scales)
    assert_close(got, case.right_experts(counts, tokens, scales))


def test_the_grid_of_experts_is_never_too_small() -> None:
    rng = np.random.default_rng(3)
    for _ in range(300):
        experts, pairs = int(rng.integers(1, 40)), int(rng.integers(0, 700))
        cut = expert_tiles(64, pairs, experts)
        counts = rng.multinomial(pairs, rng.dirichlet(np.full(experts, rng.choice([0.05, 1.0]))))
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
