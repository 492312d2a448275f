"""Quantized columns against their definition in numpy float64."""

import numpy as np
import pytest

from ggrun.kernels import load_cpu
from tests.kernels.test_formats import FORMATS, parts, product, quantized, random_rows

QUANTIZED = [name for name in FORMATS if load_cpu(f"formats.{name.lower()}").COLUMNS == "q8"]
LEAST = 127 / float(np.finfo(np.float32).max)
"""Blocks whose largest value is below this have no scale whose inverse is a float."""


def columns_of(n: int, k: int, size: float = 1.0, seed: int = 1) -> np.ndarray:
    """Normal numbers, each block with a size of its own."""
    rng = np.random.default_rng(seed)
    sizes = np.repeat(2.0 ** rng.uniform(-8, 8, (n, k // 32)), 32, 1) * size
    return (rng.standard_normal((n, k)) * sizes).astype(np.float32)


def check(x: np.ndarray) -> None:
    """All parts: bytes from the exact quotient, sums from the bytes, and nothing behind the last value."""
    n, k = x.shape
    columns = quantized(x)
    data, scales, sums, halves, less_sums, less_halves = parts(columns, k)
    data, halves = data.reshape(n, -1, 32), halves.reshape(n, -1, 2)
    blocks = x.astype(np.float64).reshape(n, -1, 32)
    largest = np.abs(blocks).max(-1)
    np.testing.assert_allclose(scales, largest / 127, rtol=3e-7, atol=2e-45)
    exact = np.divide(blocks * 127, largest[..., None], where=largest[..., None] > 0, out=0 * blocks)
    decided = np.abs(exact - np.floor(exact) - 0.5) > 1e-4  # not a tie, but for the float32 quotient
    normal = (largest > LEAST)[..., None] & decided
    assert np.array_equal(data[normal], np.rint(exact[normal]))
    assert np.abs(data - exact)[(largest > LEAST)[..., None] & ~decided].max(initial=0) < 0.501
    assert np.abs(data).max() <= 127
    assert np.array_equal(less_sums, -data.sum(-1))
    assert np.array_equal(less_halves.reshape(n, -1, 2), -data.reshape(n, -1, 2, 16).sum(-1))
    # Sums keep their meaning to the last bits of float32, relative to what could have been summed.
    room = np.abs(data).sum(-1) * scales * 1e-6 + 1e-43
    assert (np.abs(sums - data.sum(-1) * scales) <= room).all()
    by_half = data.reshape(n, -1, 2, 16).sum(-1) * scales[..., None]
    assert (np.abs(halves - by_half) <= room[..., None]).all()
    for part, size in zip(parts(columns, -(-k // 256) * 256), (1, 32, 32, 16, 32, 16), strict=True):
        assert not part[:, k // size :].any()


@pytest.mark.parametrize("k", [32, 64, 96, 512, 2080])
@pytest.mark.parametrize("n", [1, 5])
def test_definition(n: int, k: int) -> None:
    check(columns_of(n, k))


@pytest.mark.parametrize("size", [1e-44, 1e-38, 1e-36, 1e-30, 1e-20, 1e20, 1e30, 1e35])
def test_tiny_and_huge_values(size: float) -> None:
    x = columns_of(3, 256, size)
    check(x)
    data, scales, *_ = parts(quantized(x), 256)
    got = data.reshape(3, -1, 32) * scales[..., None]
    largest = np.abs(x.reshape(3, -1, 32)).max(-1, keepdims=True)
    # Half a step, or where the scale has few bits, no more than what was there (and that is next to nothing).
    error = np.abs(got - x.reshape(3, -1, 32))
    assert (error <= np.where(largest > LEAST, largest / 253.9, 1.01 * largest + 1e-43)).all()


def test_the_largest_float() -> None:
    most = np.finfo(np.float32).max
    x = np.full((1, 64), most, np.float32)
    x[0, ::2] *= -1  # so that their sum is a float as well
    x[0, 32:] /= -64
    check(x)


def test_zeros() -> None:
    assert not quantized(np.zeros((3, 96), np.float32)).any()
    assert not parts(quantized(np.full((1, 64), -0.0, np.float32)), 64)[0].any()
    x = columns_of(1, 96)
    x[:, 32:64] = 0
    for part in parts(quantized(x), 96):
        before, here, after = np.split(part[0], 3)
        assert not here.any()
        assert before.any()
        assert after.any()


def test_ends_of_the_range() -> None:
    """The largest becomes 127 or -127, never -128, wherever in the block it is."""
    for at in range(32):
        for sign in (1, -1):
            x = np.random.default_rng(at).uniform(-1, 1, (1, 32)).astype(np.float32)
            x[0, at] = 3.1 * sign
            data = parts(quantized(x), 32)[0][0]
            assert data[at] == 127 * sign
            assert np.abs(np.delete(data, at)).max() <= 41


def test_threads_share_the_columns() -> None:
    columns = load_cpu("columns")
    x = columns_of(7, 64)
    want = quantized(x)
    for threads in (2, 3, 10):
        out, count = np.zeros_like(want), np.array([7])
        args = columns.QUANTIZE.pack(n=count.ctypes.data, x=x.ctypes.data, y=out.ctypes.data, k=64)
        for thread in range(threads):
            columns.quantize(args.ctypes.data, thread, threads)
        assert np.array_equal(out, want)


# ---------------------------------------------------------------- what is no number does not vanish

NONE = {"nan": np.nan, "-nan": -np.nan, "inf": np.inf, "-inf": -np.inf}


@pytest.mark.parametrize("wrong", NONE)
def test_the_scale_of_a_block_with_no_number(wrong: str) -> None:
    for at in range(32):
        x = columns_of(2, 96)
        want = parts(quantized(x), 96)
        x[1, 32 + at] = NONE[wrong]
        got = parts(quantized(x), 96)
        _, scales, sums, halves, *_ = got
        assert np.isnan(scales[1, 1]), at
        assert np.isnan(sums[1, 1]), at
        assert np.isnan(halves[1, 2:4]).all(), at
        for part, before in zip(got, want, strict=True):
            size = part.shape[1] // 3
            others = np.ones(part.shape, bool)
            others[1, size : 2 * size] = False
            assert np.array_equal(part[others], before[others]), at


def test_a_block_of_nothing_but_no_numbers() -> None:
    for value in NONE.values():
        assert np.isnan(parts(quantized(np.full((1, 32), value, np.float32)), 32)[1]).all()
    x = np.array([[np.inf, -np.inf, np.nan, 1.0] * 8], np.float32)
    assert np.isnan(parts(quantized(x), 32)[1]).all()


@pytest.mark.parametrize("columns", [1, 3, 9])
@pytest.mark.parametrize("name", QUANTIZED)
def test_products_with_no_number(name: str, columns: int) -> None:
    """In every row, whatever the weights; other columns are as they were."""
    data = random_rows(name, 70, 512, np.random.default_rng(4))
    clean = np.random.default_rng(5).standard_normal((columns, 512)).astype(np.float32)
    want = product(name, data, clean)
    assert np.isfinite(want).all()
    for wrong, at in (("nan", 0), ("inf", 511), ("-inf", 300)):
        x, bad = clean.copy(), columns // 2
        x[bad, at] = NONE[wrong]
        got = product(name, data, x)
        assert not np.isfinite(got[bad]).any(), (wrong, at)
        assert np.array_equal(np.delete(got, bad, 0), np.delete(want, bad, 0)), (wrong, at)
