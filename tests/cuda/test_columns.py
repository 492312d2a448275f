"""kernels/cuda/columns.cu against numpy and the CPU's columns."""

import numpy as np
import pytest

from ggrun.devices.cuda.matvec import norm_quantize_shape, quantize_shape
from tests.cuda.conftest import Card
from tests.cuda.weights import column_bytes, quantized, values
from tests.kernels.test_formats import parts
from tests.kernels.test_formats import quantized as quantized_on_cpu

EPS = 1e-5


def run_quantize(card: Card, x: np.ndarray) -> np.ndarray:
    n, k = x.shape
    there = card.empty((n, column_bytes(k)), np.uint8)
    card.run(
        "columns.cu", "quantize", *quantize_shape(k, n), [card.array(x), there, np.int32(k), np.int32(n)]
    )
    return card.read(there)


@pytest.mark.parametrize(("n", "k"), [(0, 64), (1, 32), (1, 4096), (3, 96), (8, 1056), (513, 32)])
def test_quantize(card: Card, n: int, k: int) -> None:
    x = np.random.default_rng(n).standard_normal((n, k)).astype(np.float32)
    x[: n // 2] *= np.float32(1e-30)
    np.testing.assert_array_equal(run_quantize(card, x), quantized(x))


def test_as_the_cpu(card: Card) -> None:
    """The same bytes and scales, of numbers that are none, too."""
    x = np.random.default_rng(3).standard_normal((6, 512)).astype(np.float32)
    x[0, :64] = 0.0
    x[1, 40], x[2, 70], x[3, 5] = np.inf, -np.inf, np.nan
    x[4] *= np.float32(1e-42)
    x[5, ::3] *= np.float32(5e37)
    bytes_there, scales_there, *_ = parts(quantized_on_cpu(x), 512)
    got = run_quantize(card, x)
    scales = np.ascontiguousarray(got[:, 512:640]).view(np.float32)[:, ::2]
    np.testing.assert_array_equal(np.ascontiguousarray(got[:, :512]).view(np.int8), bytes_there)
    if card.flushes:
        scales_there = np.where(np.abs(scales_there) < np.finfo(np.float32).tiny, 0, scales_there)
    np.testing.assert_array_equal(scales, scales_there)


@pytest.mark.parametrize(("n", "k"), [(0, 64), (1, 32), (1, 4096), (3, 2080), (5, 96), (2, 9248)])
@pytest.mark.parametrize("wants_floats", [False, True])
def test_rms_norm_quantize(card: Card, n: int, k: int, wants_floats: bool) -> None:
    rng = np.random.default_rng(k)
    x, weight = rng.standard_normal((n, k)).astype(np.float32), rng.standard_normal(k).astype(np.float32)
    wide = x.astype(np.float64)
    want = wide / np.sqrt((wide**2).mean(1, keepdims=True) + EPS) * weight
    columns, normed = card.empty((n, column_bytes(k)), np.uint8), card.empty((n, k), np.float32)
    args = [card.array(x), card.array(weight), normed if wants_floats else 0, columns]
    args += [np.int32(k), np.int32(n), np.float32(EPS)]
    card.run("columns.cu", "rms_norm_quantize", *norm_quantize_shape(n), args)
    if wants_floats:
        np.testing.assert_allclose(card.read(normed), want, rtol=1e-5, atol=1e-6)
        # The columns are those of the very floats that are written.
        used = k + k // 4
        np.testing.assert_array_equal(card.read(columns)[:, :used], quantized(card.read(normed))[:, :used])
    steps = np.repeat(np.abs(want).reshape(n, k // 32, 32).max(2), 32, 1) / 127
    assert (np.abs(values(card.read(columns), k) - want) <= 0.501 * steps + 1e-6).all()
