"""kernels/cuda/matmul.cu: quantized weights times many columns, against numpy float64 with the same bytes."""

import numpy as np
import pytest
from numpy.typing import NDArray

from ggrun.devices.cuda_tiles import ROWS, Tiles, expert_tiles, tiles
from tests.cuda.columns import quantized, values
from tests.cuda.conftest import Card
from tests.kernels.test_formats import exact, random_rows

FORMATS = ["Q4_0", "Q8_0", "Q4_K", "Q6_K"]
ONE_CARD = pytest.mark.parametrize("card", ["800-random"], indirect=True)
SHAPES = [(1, 9, 16), (70, 16, 16), (65, 33, 32), (64, 64, 64), (130, 65, 64), (33, 130, 128)]


def run(
    card: Card, name: str, w: NDArray, x: NDArray, cut: Tiles, scale: float = 1.0, bias: NDArray | None = None
) -> NDArray:
    """The kernel's [n, rows]."""
    (rows, _), (n, k) = w.shape, x.shape
    y, splits = card.empty((n, rows), np.float32), cut.splits
    partial = card.empty((splits, n, rows), np.float32) if splits > 1 else y
    bias_there = 0 if bias is None else card.array(bias)
    after = (np.float32(scale), bias_there)
    card.run(
        "matmul.cu", "matmul", cut.grid, cut.block,
        [card.array(w), np.int32(rows), np.int32(k), card.array(quantized(x)), np.int32(n), partial,
         *(after if splits == 1 else (np.float32(1.0), 0))],
        FORMAT=name, **cut.defines,
    )  # fmt: skip
    if splits > 1:
        sizes = (np.int32(splits), np.int32(n), np.int32(rows))
        card.run("split_k.cu", "sum_splits", (-(-rows // 256), n), 256, [partial, *sizes, y, *after])
    return card.read(y)


def error(got: NDArray, right: NDArray) -> float:
    """The largest difference, relative to the root of the mean square of what is right."""
    return float(np.abs(got - right).max() / np.sqrt(np.square(right).mean()))


def case(name: str, rows: int, k: int, n: int) -> tuple[NDArray, NDArray, NDArray]:
    """Weights, columns, and the products of what both stand for."""
    rng = np.random.default_rng(rows * n)
    w, x = random_rows(name, rows, k, rng), rng.standard_normal((n, k)).astype(np.float32)
    return w, x, values(quantized(x), k) @ exact(name, w).T


def cut_in(size: int, rows: int, n: int, splits: int = 1, tile_rows: int = ROWS) -> Tiles:
    return Tiles(tile_rows, size, (max(1, -(-n // size)), -(-rows // tile_rows), splits))


@pytest.mark.parametrize("name", FORMATS)
def test_every_format(card: Card, name: str) -> None:
    w, x, right = case(name, 70, 256, 19)
    assert error(run(card, name, w, x, tiles(70, 256, 19, 1)), right) < 1e-5
