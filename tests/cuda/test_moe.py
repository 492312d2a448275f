"""moe.cu: who goes to which expert, and pairs sorted by expert, as kernels/cpu/moe.py defines them."""

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ggrun.devices.cuda import grids

GARBAGE = -12345


def route(card: Any, logits: np.ndarray, used: int, normalize: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Experts and weights [n, used] of logits [n, experts]."""
    n, experts = logits.shape
    chosen = card.array(np.full((n, used), GARBAGE, np.int32))
    weights = card.array(np.full((n, used), np.nan, np.float32))
    sizes = np.int32(n), np.int32(experts), np.int32(used), np.int32(normalize)
    args = card.array(logits), chosen, weights, *sizes
    card.run("moe.cu", "route", *grids.route(n), args, PER_LANE=grids.per_lane(experts))
    return card.read(chosen), card.read(weights)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x.astype(np.float64) - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(
    ("experts", "used"), [(1, 1), (2, 2), (8, 2), (33, 4), (60, 60), (128, 8), (512, 10)]
)
def test_route(card: Any, experts: int, used: int, normalize: bool) -> None:
    logits = (3 * np.random.default_rng(experts).standard_normal((9, experts))).astype(np.float32)
    chosen, weights = route(card, logits, used, normalize)
    best = np.argsort(-logits, axis=1, kind="stable")[:, :used]
    np.testing.assert_array_equal(chosen, best)
    exact = np.take_along_axis(softmax(logits), best, 1)
    np.testing.assert_allclose(
        weights, exact / exact.sum(1, keepdims=True) if normalize else exact, rtol=2e-6
    )


def test_of_equals_the_lowest_expert(card: Any) -> None:
    logits = np.zeros((3, 128), np.float32)
    logits[1, [7, 100]] = 2.0
    logits[2, 40] = 200.0  # beside it all others are as good as impossible, and so equal
    chosen, _ = route(card, logits, 4)
    np.testing.assert_array_equal(chosen, [[0, 1, 2, 3], [7, 100, 0, 1], [40, 0, 1, 2]])


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_logits_that_are_no_numbers_still_give_experts(card: Any, bad: float) -> None:
    """Of a damaged model: weights are no numbers then, but no kernel may read beyond the experts."""
    logits = np.random.default_rng(0).standard_normal((3, 40)).astype(np.float32)
    logits[0] = bad
    logits[1, 11] = bad
    chosen, _ = route(card, logits, 6)
    assert all(len(set(row)) == 6 and set(row) <= set(range(40)) for row in chosen.tolist())


def sort(card: Any, chosen: np.ndarray, experts: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """starts [experts + 1], tokens and places [pairs] of chosen [n, used]."""
    n, used = chosen.shape
    sizes = experts + 1, max(1, chosen.size), max(1, chosen.size)
    results = [card.array(np.full(size, GARBAGE, np.int32)) for size in sizes]
    # The buffer has more rows than the batch: what an earlier one has left there does not count.
    on_card = card.array(np.concatenate([chosen.ravel(), np.arange(64, dtype=np.int32) % experts]))
    args = on_card, *results, np.int32(n), np.int32(experts), np.int32(used)
    card.run("moe.cu", "sort", *grids.sort(experts), args, PER_LANE=grids.per_lane(experts))
    starts, tokens, places = (card.read(x) for x in results)
    return starts, tokens[: chosen.size], places[: chosen.size]


def check_sort(card: Any, chosen: np.ndarray, experts: int) -> None:
    starts, tokens, places = sort(card, chosen, experts)
    pairs = chosen.ravel()
    order = np.argsort(pairs, kind="stable")  # the pair at each place
    np.testing.assert_array_equal(starts, np.searchsorted(pairs[order], np.arange(experts + 1)))
    np.testing.assert_array_equal(tokens, order // chosen.shape[1])
    np.testing.assert_array_equal(places[order], np.arange(pairs.size))


def test_sort_of_thousands(card: Any) -> None:
    rng = np.random.default_rng(0)
    check_sort(card, rng.permuted(np.tile(np.arange(512, dtype=np.int32), (300, 1)), axis=1)[:, :10], 512)


def test_sort_with_experts_that_have_none(card: Any) -> None:
    check_sort(card, np.full((40, 1), 5, np.int32), 8)
    check_sort(card, np.array([[7, 0]] * 17, np.int32), 8)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_sort_of_anything(card: Any, data: st.DataObject) -> None:
    experts = data.draw(st.sampled_from([1, 5, 64]))
    used = data.draw(st.integers(1, min(4, experts)))
    seed, n = data.draw(st.integers(0, 2**32 - 1)), data.draw(st.integers(1, 60))
    hot = data.draw(st.integers(used, experts))  # routing is seldom even
    rng = np.random.default_rng(seed)
    chosen = np.array([rng.choice(hot, used, replace=False) for _ in range(n)], np.int32)
    check_sort(card, chosen, experts)


@pytest.mark.parametrize("experts", [0, grids.MOST_EXPERTS + 1])
def test_no_other_number_of_experts(experts: int) -> None:
    with pytest.raises(ValueError, match=f"{experts} experts"):
        grids.per_lane(experts)


def test_no_tokens(card: Any) -> None:
    """No expert has pairs: those who read starts must see that."""
    nothing = card.array(np.full(4, 7, np.float32))
    args = nothing, nothing, nothing, np.int32(0), np.int32(8), np.int32(2), np.int32(1)
    card.run("moe.cu", "route", *grids.route(0), args, PER_LANE=1)
    assert (card.read(nothing) == 7).all()
    starts, _, _ = sort(card, np.zeros((0, 2), np.int32), 8)
    assert (starts == 0).all()
