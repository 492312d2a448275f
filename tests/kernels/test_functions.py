"""Functions of vectors, and what a product of few columns does with the last of an odd number of rows."""

import numpy as np
import pytest
from ggrun.kernels.cpu.functions import exp, silu
from ggrun.kernels.cpu.simd import f32x16, load, store

from ggrun.kernels import load_cpu

kernel = load_cpu("runtime").kernel
SPECIAL = [0.0, -0.0, np.inf, -np.inf, np.nan, 88.0, 88.1, 1e30, -87.0, -87.1, -1e30, 1e-45, 1.0, -1.0]


@kernel
def exps(x: int, y: int, n: int) -> None:
    for i in range(0, n, 16):
        store(f32x16, exp(load(f32x16, x + 4 * i)), y + 4 * i)


@kernel
def silus(x: int, y: int, n: int) -> None:
    for i in range(0, n, 16):
        store(f32x16, silu(load(f32x16, x + 4 * i)), y + 4 * i)


def values() -> np.ndarray:
    """Float32 of all sizes, a multiple of 16 of them."""
    near = np.random.default_rng(0).uniform(-87, 88, 4080).astype(np.float32)
    return np.concatenate([near, np.resize(np.array(SPECIAL, np.float32), 16)])


def test_exp() -> None:
    x = values()
    y = np.empty_like(x)
    exps(x.ctypes.data, y.ctypes.data, len(x))
    with np.errstate(over="ignore"):
        want = np.exp(x.astype(np.float64))
    want[x < -87] = 0
    want[x > 88] = np.inf
    np.testing.assert_allclose(y, want, rtol=3e-7)


def test_silu() -> None:
    x = values()
    y = np.empty_like(x)
    silus(x.ctypes.data, y.ctypes.data, len(x))
    with np.errstate(over="ignore", invalid="ignore"):
        want = x / (1 + np.exp(-x.astype(np.float64)))
    finite = x != -np.inf  # there it is -inf / inf
    np.testing.assert_allclose(y[finite], want[finite], rtol=1e-6, atol=1e-36)


@pytest.mark.parametrize("rows", [1, 2, 7, 8, 9])
def test_few_columns_of_an_odd_number_of_rows(rows: int) -> None:
    q4_k, r, c = load_cpu("formats.q4_k"), load_cpu("formats.rows"), load_cpu("columns")
    rng = np.random.default_rng(rows)
    k, columns, size = 512, 3, c.column_bytes(512)
    w = rng.integers(0, 256, (rows, k // 256, q4_k.SIZE), np.uint8)
    w[:, :, :4].view(np.float16)[:] = 0.01
    x = rng.standard_normal((columns, k)).astype(np.float32)
    quantized, n = np.zeros((columns + c.ROOM) * size, np.uint8), np.array([columns])
    args = c.QUANTIZE.pack(n=n.ctypes.data, x=x.ctypes.data, y=quantized.ctypes.data, k=k)
    c.quantize(args.ctypes.data, 0, 1)
    y = np.full((columns, rows + 1), 7.0, np.float32)
    task = r.MATMUL.pack(
        w=w.ctypes.data, w_stride=w[0].nbytes, rows=rows, x=quantized.ctypes.data, x_stride=c.SIZE,
        x_block=columns * c.SIZE, k=k, columns=columns, y=y.ctypes.data, y_stride=y.strides[0],
    )  # fmt: skip
    q4_k.matmul(task.ctypes.data)
    floats = np.empty((rows, k), np.float32)
    for i in range(rows):
        q4_k.dequantize(w[i].ctypes.data, k, floats[i].ctypes.data)
    np.testing.assert_allclose(y[:, :rows], x @ floats.T, atol=2.0)  # columns are rounded to bytes
    assert (y[:, rows] == 7.0).all()  # what is beside the rows is not touched
