"""activation.cu against float64: every activation, alone and gated, over all sizes of inputs."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ggrun.devices.cuda import grids

Function = Callable[[np.ndarray], np.ndarray]


def gelu(x: np.ndarray) -> np.ndarray:
    """By the tanh, as a logistic function: of float64 nothing would be left at -10 otherwise."""
    return x / (1 + np.exp(-2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


EXACT: dict[str, Function] = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": gelu,
    "gelu_erf": lambda x: 0.5 * x * np.vectorize(math.erfc)(-x / math.sqrt(2)),
    "relu2": lambda x: np.maximum(x, 0) ** 2,
}
# Far below 0 the exponential multiplies the rounding of its argument: who is as small as this does not count.
TINY = 1e-20
# Sizes that are and are not a multiple of a thread's four, and more than a block.
TOTALS = [1, 3, 4, 513, 2051]


@pytest.mark.parametrize("total", TOTALS)
@pytest.mark.parametrize("name", EXACT)
def test_alone_and_gated(card: Any, name: str, total: int) -> None:
    rng = np.random.default_rng(total)
    x, up = (4 * rng.standard_normal(total)).astype(np.float32), rng.standard_normal(total).astype(np.float32)
    y = card.array(np.full(total, np.nan, np.float32))
    launch = grids.elements(total)
    card.run("activation.cu", "activate", *launch, (card.array(x), y, np.int64(total)), ACTIVATION=name)
    exact = EXACT[name](x.astype(np.float64))
    np.testing.assert_allclose(card.read(y), exact, rtol=1e-5, atol=TINY)
    gate = card.array(x)
    args = gate, card.array(up), gate, np.int64(total)  # in place
    card.run("activation.cu", "activate_gated", *launch, args, ACTIVATION=name)
    np.testing.assert_allclose(card.read(gate), exact * up, rtol=1e-5, atol=TINY)


@pytest.mark.parametrize("name", EXACT)
def test_ends_of_the_range(card: Any, name: str) -> None:
    """What is large goes through or to 0, and what is no number stays none."""
    x = np.array([0, 1e-30, 12, 1000, 1e18, -12, -50, -90, -1000, -1e18, np.nan], np.float32)
    y = card.array(np.full(x.size, 7, np.float32))
    args = card.array(x), y, np.int64(x.size)
    card.run("activation.cu", "activate", *grids.elements(x.size), args, ACTIVATION=name)
    with np.errstate(over="ignore"):
        exact = EXACT[name](x.astype(np.float64))
    np.testing.assert_allclose(card.read(y), exact, rtol=1e-5, atol=TINY)


@pytest.mark.parametrize("name", EXACT)
def test_nothing(card: Any, name: str) -> None:
    y = card.array(np.full(4, 7, np.float32))
    card.run("activation.cu", "activate", *grids.elements(0), (y, y, np.int64(0)), ACTIVATION=name)
    card.run("activation.cu", "activate_gated", *grids.elements(0), (y, y, y, np.int64(0)), ACTIVATION=name)
    assert (card.read(y) == 7).all()
