"""The best of many logits, against their definition."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggrun.devices.best import MOST_K, Best, TopK, best_of

FEW = st.sampled_from([-np.inf, -1e30, -2.0, -0.0, 0.0, 1e-40, 1.0, 3.4e38, np.inf])


def definition(logits: np.ndarray, k: int) -> list[int]:
    possible = [i for i, logit in enumerate(logits.tolist()) if logit != -np.inf]
    return sorted(possible, key=lambda i: (-logits[i], i))[:k]


@given(row=st.lists(FEW, max_size=40), repeat=st.integers(1, 100), k=st.integers(1, 70))
def test_any_order_of_equals(row: list[float], repeat: int, k: int) -> None:
    logits = np.tile(np.array(row, np.float32), repeat)
    assert best_of(logits, k).tolist() == definition(logits, k)


@given(seed=st.integers(0, 1000), size=st.integers(1, 9000), k=st.integers(1, 200))
def test_many(seed: int, size: int, k: int) -> None:
    logits = np.random.default_rng(seed).standard_normal(size).astype(np.float32)
    assert best_of(logits, k).tolist() == definition(logits, k)


@pytest.mark.parametrize("k", [1, 2, 40, 5000])
@pytest.mark.parametrize("where", [0, 700, 1023, 1024, 2999])
def test_what_is_no_number_comes_first(where: int, k: int) -> None:
    logits = np.zeros(3000, np.float32)
    logits[[5, 6]] = np.inf
    logits[where] = np.nan
    assert best_of(logits, k).tolist() == [where]


def test_room_that_is_not_needed() -> None:
    best = Best(2, 3)
    best.fill(np.array([[1, -np.inf, 2], [-np.inf] * 3], np.float32))
    assert best.ids.tolist() == [[2, 0, -1], [-1] * 3]
    assert best.logits.tolist() == [[2, 1, -np.inf], [-np.inf] * 3]
    best.fill(np.empty((2, 0), np.float32))
    assert (best.ids == -1).all()


@pytest.mark.parametrize(("k", "words"), [(0, 9), (-1, 9), (MOST_K + 1, 9), (1, -1)])
def test_what_there_is_no_room_for(k: int, words: int) -> None:
    with pytest.raises(ValueError, match=f"the {k} best of {words}"):
        TopK(k, words)


def test_which_ids_are_words() -> None:
    top = TopK(1, 10)
    assert [top.among(*share) for share in ((0, 4), (4, 12), (10, 12), (0, 10))] == [4, 6, 0, 10]
