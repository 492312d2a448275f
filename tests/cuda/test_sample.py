"""sample.cu: the best token, the k best and log-sum-exp of rows, against numpy, with ties everywhere."""

import re
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ggrun.devices.cuda import grids
from ggrun.kernels import cuda_source

GARBAGE = -12345
# One token, less than a slice, a slice and one more, an odd row, several slices, and a big vocabulary.
WIDTHS = [1, 6, 1000, 4096, 4097, 8193, 20_000]
BIG = 151_936


def argmax(card: Any, logits: np.ndarray, words: int | None = None) -> np.ndarray:
    n, stride = logits.shape
    width = stride if words is None else words
    x, slices = card.array(logits), grids.slices(n, width)
    best = card.array(np.full((n, slices.grid[0]), GARBAGE, np.int64))
    ids, values = card.array(np.full(n, GARBAGE, np.int32)), card.array(np.full(n, np.nan, np.float32))
    card.run("sample.cu", "argmax", *slices, (x, best, np.int32(n), np.int32(width), np.int32(stride)))
    args = best, ids, values, np.int32(n), np.int32(slices.grid[0])
    card.run("sample.cu", "argmax_of_slices", *grids.of_slices(n, width), args)
    found = card.read(ids)
    want = [row[i] if i >= 0 else -np.inf for row, i in zip(logits, found, strict=True)]
    np.testing.assert_array_equal(card.read(values), want)
    return found


def top_k(card: Any, logits: np.ndarray, k: int, words: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Ids and logits [n, k]."""
    n, stride = logits.shape
    x, ids = card.array(logits), card.array(np.full((n, k), GARBAGE, np.int32))
    values = card.array(np.full((n, k), np.nan, np.float32))
    for i, (count, size, shape) in enumerate(grids.top_k(n, stride if words is None else words, k)):
        best = card.array(np.full((n, k, shape.grid[0]), GARBAGE, np.int64))
        name, third = ("top_k_of_slices", size) if i else ("top_k", stride)
        sizes = np.int32(n), np.int32(count), np.int32(third), np.int32(k)
        card.run("sample.cu", name, *shape, (x, best, ids, values, *sizes))
        x = best
    return card.read(ids), card.read(values)


def best_ids(logits: np.ndarray, k: int) -> np.ndarray:
    return np.argsort(-logits, axis=1, kind="stable")[:, :k]


def normal(n: int, width: int) -> np.ndarray:
    return (5 * np.random.default_rng(width).standard_normal((n, width))).astype(np.float32)


def coarse(n: int, width: int) -> np.ndarray:
    """Logits with many equals, zeros of both signs and tokens that are impossible."""
    x = np.round(normal(n, width) / 5)
    return np.where(x == -2, -np.inf, x).astype(np.float32)


@pytest.mark.parametrize("width", WIDTHS)
def test_argmax(card: Any, width: int) -> None:
    for logits in (normal(3, width), coarse(3, width)):
        np.testing.assert_array_equal(argmax(card, logits), logits.argmax(1))


def test_argmax_of_a_large_vocabulary(card: Any) -> None:
    logits = normal(1, 300_000)
    logits[0, [299_999, 123_456, 250_000]] = 99.0
    assert argmax(card, logits) == [123_456]


@pytest.mark.parametrize("k", [1, 7, 64])
@pytest.mark.parametrize("width", WIDTHS)
def test_top_k(card: Any, width: int, k: int) -> None:
    logits = normal(2, width)
    ids, values = top_k(card, logits, k)
    found = min(k, width)
    np.testing.assert_array_equal(ids[:, :found], best_ids(logits, k))
    np.testing.assert_array_equal(values[:, :found], np.take_along_axis(logits, best_ids(logits, k), 1))
    assert (ids[:, found:] == -1).all()
    assert (values[:, found:] == -np.inf).all()


@pytest.mark.parametrize("k", [40, 256])
def test_top_k_of_a_large_vocabulary(card: Any, k: int) -> None:
    """Of equals the first, also of those that are slices apart."""
    logits = coarse(1, BIG)
    ids, values = top_k(card, logits, k)
    np.testing.assert_array_equal(ids, best_ids(logits, k))
    np.testing.assert_array_equal(values, np.take_along_axis(logits, best_ids(logits, k), 1))


@pytest.mark.parametrize("card", ["800-random"], indirect=True)
@pytest.mark.parametrize("order", [1, -1, 0])
def test_wherever_the_best_are(card: Any, order: int) -> None:
    """All in the last slice or in the first: then nearly as many are kept as there is room for."""
    logits = order * np.arange(262_144, dtype=np.float32)[None]
    np.testing.assert_array_equal(top_k(card, logits, 128)[0], best_ids(logits, 128))


def test_candidates_that_are_none(card: Any) -> None:
    """Zeros: the end of a list of the best of a slice that had fewer."""
    ids = np.array([[9, 5, 6]], np.uint64)
    found = np.zeros((1, 200), np.uint64)
    found[:, [3, 77, 150]] = np.uint64(0xBF800000 << 32) | (0xFFFFFFFF - ids)  # of logits that are 1
    x, best, values = (
        card.array(found),
        card.array(np.zeros((1, 5), np.int32)),
        card.zeros((1, 5), np.float32),
    )
    [(given, size, shape)] = grids.top_k(1, 200, 5)
    sizes = np.int32(1), np.int32(given), np.int32(size), np.int32(5)
    card.run("sample.cu", "top_k_of_slices", *shape, (x, x, best, values, *sizes))
    np.testing.assert_array_equal(card.read(best), [[5, 6, 9, -1, -1]])
    np.testing.assert_array_equal(card.read(values), [[1, 1, 1, -np.inf, -np.inf]])


def most_kept() -> int:
    """The room of a block."""
    (found,) = re.findall(r"MOST_KEPT = (\d+)", cuda_source("sample.cu").read_text())
    return int(found)


@pytest.mark.parametrize("k", [1, 64, 128, 700, grids.MOST_OF_SLICE])
def test_passes(k: int) -> None:
    passes = grids.top_k(3, 262_144, k)
    assert len(passes) == 2 or k > 128
    for before, after in pairwise(passes):
        assert after.given == k * before.shape.grid[0] < before.given
    for each in passes:
        # The best may all be those of k threads: so many keys are kept.
        assert k * -(-min(each.given, each.slice) // each.shape.block[0]) <= most_kept()
        assert each.shape.grid == (-(-each.given // each.slice), 3)
        assert k <= each.shape.block[0] <= 1024
    assert passes[-1].shape.grid[0] == 1


def test_the_largest_k(card: Any) -> None:
    logits = normal(1, 5000)
    ids, _ = top_k(card, logits, grids.MOST_OF_SLICE)
    np.testing.assert_array_equal(ids, best_ids(logits, grids.MOST_OF_SLICE))


@pytest.mark.parametrize("k", [0, grids.MOST_OF_SLICE + 1])
def test_no_other_k(k: int) -> None:
    with pytest.raises(ValueError, match=f"k is {k}"):
        grids.top_k(1, BIG, k)


@pytest.mark.parametrize("words", [0, 1, 700, 4096, 4999])
@pytest.mark.parametrize("stride", [5000, 5001])
def test_logits_that_are_of_no_words(card: Any, stride: int, words: int) -> None:
    """However good, they are not looked at; nor is what is no number among them."""
    logits = coarse(2, stride)
    logits[:, words:] = np.inf
    logits[1, words:] = np.nan
    best = best_ids(logits[:, :words], 7)
    ids, values = top_k(card, logits, 7, words)
    np.testing.assert_array_equal(ids[:, : best.shape[1]], best)
    np.testing.assert_array_equal(values[:, : best.shape[1]], np.take_along_axis(logits, best, 1))
    assert (ids[:, best.shape[1] :] == -1).all()
    np.testing.assert_array_equal(argmax(card, logits, words), best[:, 0] if words else [-1, -1])


few = st.sampled_from([-np.inf, -1e30, -2.0, -0.0, 0.0, 1e-40, 1.0, 1e30, np.inf])


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(row=st.lists(few, min_size=1, max_size=40), repeat=st.integers(1, 60), k=st.integers(1, 20))
def test_any_order_of_equals(card: Any, row: list[float], repeat: int, k: int) -> None:
    logits = np.tile(np.array(row, np.float32), repeat)[None]
    if card.flushes:
        logits[np.abs(logits) < np.finfo(np.float32).tiny] = 0.0
    ids, values = top_k(card, logits, k)
    found = min(k, logits.size)
    np.testing.assert_array_equal(ids[:, :found], best_ids(logits, k))
    np.testing.assert_array_equal(values[:, :found], np.take_along_axis(logits, best_ids(logits, k), 1))
    np.testing.assert_array_equal(argmax(card, logits), logits.argmax(1))


@pytest.mark.parametrize("bad", [np.nan, -np.nan])
@pytest.mark.parametrize("width", [1000, 5000])
def test_what_is_no_number_is_seen(card: Any, bad: float, width: int) -> None:
    logits = normal(1, width)
    logits[0, 700] = bad
    assert argmax(card, logits) == [700]
    ids, values = top_k(card, logits, 3)
    assert ids[0, 0] == 700
    assert np.isnan(values[0, 0])


def test_impossible_tokens(card: Any) -> None:
    logits = np.full((2, 8200), -np.inf, np.float32)
    logits[1, 8199] = 2.0
    np.testing.assert_array_equal(argmax(card, logits), [0, 8199])


def test_no_rows(card: Any) -> None:
    nothing = card.array(np.full(4, 7, np.int64))
    zero, width, k = np.int32(0), np.int32(4), np.int32(2)
    slices, of_slices, one = grids.slices(0, 4), grids.of_slices(0, 4), np.int32(1)
    card.run("sample.cu", "argmax", *slices, (nothing, nothing, zero, width, width))
    card.run("sample.cu", "argmax_of_slices", *of_slices, (nothing, nothing, nothing, zero, one))
    four = nothing, nothing, nothing, nothing
    [(_, _, shape)] = grids.top_k(0, 4, 2)
    for name in ("top_k", "top_k_of_slices"):
        card.run("sample.cu", name, *shape, (*four, zero, width, width, k))
    assert (card.read(nothing) == 7).all()
