"""norm.cu against float64: widths of heads and of rows, odd ones, groups, and rows longer than registers."""

from typing import Any

import numpy as np
import pytest

from ggrun.devices.cuda import grids

EPS = np.float32(1e-5)
# A head, odd ones, one warp's last, a block's first, an odd block, more than a block of odd floats keeps.
WIDTHS = [1, 3, 64, 128, 257, 512, 516, 1023, 2880, 4200, 4201]


def values(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def rms(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + np.float64(EPS))


def layer(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    return rms(x - x.mean(-1, keepdims=True))


def relative_error(y: np.ndarray, exact: np.ndarray) -> float:
    """Of a row's largest value: a centred value may be as near to 0 as it likes."""
    return float((np.abs(y - exact).max(-1) / np.abs(exact).max(-1)).max())


def run(
    card: Any, name: str, x: Any, *vectors: Any, rows: int, width: int, weight_rows: int = 1
) -> np.ndarray:
    """A norm of x [rows, width] with weights and such in fresh memory."""
    y = card.array(np.full((rows, width), np.nan, np.float32))
    sizes = np.int32(rows), np.int32(width), np.int32(weight_rows), EPS
    card.run("norm.cu", name, *grids.norm(rows, width), (x, *vectors, y, *sizes))
    return card.read(y)


@pytest.mark.parametrize("width", WIDTHS)
def test_rms_norm(card: Any, width: int) -> None:
    x, weight = values(5, width), values(width, seed=1)
    y = run(card, "rms_norm", card.array(x), card.array(weight), rows=5, width=width)
    np.testing.assert_allclose(y, rms(x) * weight, rtol=2e-6)


@pytest.mark.parametrize("width", [w for w in WIDTHS if w > 1])
def test_layer_norm(card: Any, width: int) -> None:
    x, weight, bias = values(3, width) + 30, values(width, seed=1), values(width, seed=2)
    y = run(card, "layer_norm", card.array(x), card.array(weight), card.array(bias), rows=3, width=width)
    assert relative_error(y, layer(x) * weight + bias) < 1e-5


def test_groups_of_a_row_are_rows(card: Any) -> None:
    x, weight = values(7, 3, 96), values(96, seed=1)
    y = run(card, "rms_norm", card.array(x), card.array(weight), rows=21, width=96)
    np.testing.assert_allclose(y.reshape(x.shape), rms(x) * weight, rtol=2e-6)


def test_each_head_its_own_weight(card: Any) -> None:
    x, weight, bias = values(4, 3, 80), values(3, 80, seed=1), values(3, 80, seed=2)
    w, b = card.array(weight), card.array(bias)
    y = run(card, "layer_norm", card.array(x), w, b, rows=12, width=80, weight_rows=3)
    assert relative_error(y.reshape(x.shape), layer(x) * weight + bias) < 1e-5


@pytest.mark.parametrize("width", [48, 1027])
def test_without_weight_or_bias(card: Any, width: int) -> None:
    x, weight = values(3, width), values(width, seed=1)
    np.testing.assert_allclose(
        run(card, "rms_norm", card.array(x), 0, rows=3, width=width), rms(x), rtol=2e-6
    )
    y = run(card, "layer_norm", card.array(x), card.array(weight), 0, rows=3, width=width)
    assert relative_error(y, layer(x) * weight) < 1e-5


@pytest.mark.parametrize("width", [64, 4201])
def test_in_place(card: Any, width: int) -> None:
    x, weight = values(3, width), values(width, seed=1)
    y = card.array(x)
    sizes = np.int32(3), np.int32(width), np.int32(1), EPS
    card.run("norm.cu", "rms_norm", *grids.norm(3, width), (y, card.array(weight), y, *sizes))
    np.testing.assert_allclose(card.read(y), rms(x) * weight, rtol=2e-6)


def test_rows_longer_than_a_block_keeps(card: Any) -> None:
    width = 4 * grids.KEPT * 1024 + 4
    x, weight = values(1, width), values(width, seed=1)
    y = run(card, "rms_norm", card.array(x), card.array(weight), rows=1, width=width)
    np.testing.assert_allclose(y, rms(x) * weight, rtol=2e-6)


@pytest.mark.parametrize("width", [64, 2048])
def test_no_rows(card: Any, width: int) -> None:
    nothing = card.array(np.full((1, width), 7, np.float32))
    sizes = np.int32(0), np.int32(width), np.int32(1), EPS
    card.run("norm.cu", "rms_norm", *grids.norm(0, width), (nothing, nothing, nothing, *sizes))
    assert (card.read(nothing) == 7).all()
