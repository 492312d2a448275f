"""kernels/cuda/matmul_floats.cu: F32, F16 and BF16 weights times many columns, against numpy float64."""

import numpy as np
import pytest

from ggrun.devices.cuda.matvec import FLOATS
from ggrun.devices.cuda.tiles import float_tiles
from tests.cuda.conftest import Card
from tests.cuda.products import Case, assert_close
from tests.cuda.test_matmul import ONE_CARD, TWO_CARDS


@TWO_CARDS
@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize(("columns", "k"), [(16, 256), (16, 77), (32, 100), (64, 40), (64, 1)])
def test_every_format_and_tile(card: Card, name: str, columns: int, k: int) -> None:
    case = Case(name, 70, k, columns + 5)
    assert_close(case.run(card, case.tiles(columns)), case.right)


@pytest.mark.parametrize(("rows", "n"), [(1, 9), (1, 1), (64, 8), (65, 16), (7, 513), (40, 0)])
def test_odd_sizes(card: Card, rows: int, n: int) -> None:
    case = Case("BF16", rows, 72, n)
    assert_close(case.run(card, float_tiles(rows, 72, n, 4)), case.right)


@ONE_CARD
@pytest.mark.parametrize("splits", [1, 2, 5])
def test_scale_bias_and_splits(card: Card, splits: int) -> None:
    case = Case("F16", 70, 136, 20)
    bias = np.random.default_rng(1).standard_normal(70).astype(np.float32)
    assert_close(case.run(card, case.tiles(32, splits), 0.5, bias), 0.5 * case.right + bias)


@ONE_CARD
def test_long_sums(card: Card) -> None:
    case = Case("BF16", 64, 14336, 16)
    assert_close(case.run(card, case.tiles(16)), case.right)


@TWO_CARDS
@pytest.mark.parametrize("counts", [[20], [0, 17, 0, 1, 33], [0, 0]], ids=["one", "uneven", "empty"])
def test_experts(card: Card, counts: list[int]) -> None:
    case = Case("F16", 66, 100, sum(counts), len(counts))
    assert_close(case.run_experts(card, counts), case.right_experts(counts, None, None))


@TWO_CARDS
def test_experts_take_their_columns_from_tokens(card: Card) -> None:
    counts, rng = [0, 17, 0, 1, 33], np.random.default_rng(2)
    tokens, scales = rng.integers(0, 6, 51, np.int32), rng.standard_normal(5).astype(np.float32)
    case = Case("F32", 66, 100, 6, len(counts))
    got = case.run_experts(card, counts, tokens, scales)
    assert_close(got, case.right_experts(counts, tokens, scales))
