"""rows.cu: rows added, picked, spread to experts, and the weighted sums of what comes back."""

from typing import Any

import numpy as np
import pytest

from ggrun.devices.cuda import grids

WIDTHS = [1, 3, 64, 130, 1028, 2049]


def values(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def fresh(card: Any, *shape: int) -> Any:
    return card.array(np.full(shape, np.nan, np.float32))


@pytest.mark.parametrize("total", [1, 4, 7, 1024, 3001])
def test_add(card: Any, total: int) -> None:
    x, y = values(total), values(total, seed=1)
    to = card.array(y)
    card.run("rows.cu", "add", *grids.elements(total), (card.array(x), to, np.int64(total)))
    np.testing.assert_array_equal(card.read(to), x + y)


@pytest.mark.parametrize("width", WIDTHS)
def test_pick(card: Any, width: int) -> None:
    x, which = values(5, width), np.array([4, 0, 0, 3], np.int32)
    y = fresh(card, 4, width)
    args = card.array(x), card.array(which), y, np.int32(4), np.int32(width)
    card.run("rows.cu", "pick", *grids.rows(4, width), args)
    np.testing.assert_array_equal(card.read(y), x[which])


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("used", [1, 2, 5, 8])
def test_combine(card: Any, width: int, used: int) -> None:
    n = 3
    x, weights = values(n * used, width), np.abs(values(n, used, seed=1))
    places = np.random.default_rng(2).permutation(n * used).astype(np.int32)
    y = fresh(card, n, width)
    on_card = card.array(x), card.array(weights), card.array(places)
    card.run(
        "rows.cu",
        "combine",
        *grids.rows(n, width),
        (*on_card, y, np.int32(n), np.int32(width), np.int32(used)),
    )
    terms = weights[..., None].astype(np.float64) * x[places].reshape(n, used, width)
    # Terms may cancel: the error is that of their sizes.
    assert (np.abs(card.read(y) - terms.sum(1)) <= 1e-6 * np.abs(terms).sum(1)).all()


def test_no_rows(card: Any) -> None:
    x, none = card.array(np.full(8, 7, np.float32)), card.array(np.zeros(1, np.int32))
    zero, width = np.int32(0), np.int32(8)
    card.run("rows.cu", "add", *grids.elements(0), (x, x, np.int64(0)))
    y = card.array(np.full(8, 9, np.float32))
    card.run("rows.cu", "pick", *grids.rows(0, 8), (x, none, y, zero, width))
    card.run("rows.cu", "combine", *grids.rows(0, 8), (x, x, none, y, zero, width, np.int32(2)))
    assert (card.read(x) == 7).all()
    assert (card.read(y) == 9).all()
