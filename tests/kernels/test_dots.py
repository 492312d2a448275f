"""Products of bytes, tables and what brings bytes into order, against NumPy."""

import numpy as np
import pytest
from ggrun.kernels.cpu.kinds import Lanes
from ggrun.kernels.cpu.llvm_ir import SIGNED, TAKES_SIGNED
from ggrun.kernels.cpu.simd import (
    Largest,
    dots,
    f16x8,
    f32x8,
    f32x16,
    gather,
    hmax,
    i8x8,
    i8x16,
    i32,
    i32x4,
    i32x8,
    i32x16,
    load,
    lookup,
    maximum,
    negated,
    numbers,
    quads_across,
    store,
    zext,
)

from ggrun.kernels import load_cpu
from tests.kernels.test_simd import at

kernel = load_cpu("runtime").kernel
NUMBERS = Lanes([7, 0, -3, 1 << 30, 2, 2, 5, -1])


def dots_of(largest: int):
    top = Largest(largest)

    def all_dots(w: int, x: int, acc: int, out: int) -> None:
        store(i32x16, dots(top, load(i32x16, acc), (load(i32x16, w),), x, 64), out)
        store(i32x8, dots(top, load(i32x8, acc), (load(i32x8, w),), x, 64), out + 64)
        store(i32x4, dots(top, load(i32x4, acc), (load(i32x4, w),), x, 64), out + 96)

    return kernel(all_dots)


def several_dots_of(largest: int):
    top = Largest(largest)

    def four_dots(w: int, x: int, acc: int, out: int) -> None:
        weights = (load(i32x16, w), load(i32x16, w + 64), load(i32x16, w + 128), load(i32x16, w + 192))
        store(i32x16, dots(top, load(i32x16, acc), weights, x, 80), out)

    return kernel(four_dots)


ALL_BYTES = SIGNED if TAKES_SIGNED else 255


@pytest.mark.parametrize("extreme", [-127, 127, 0])
@pytest.mark.parametrize("largest", [3, 63, 127, ALL_BYTES])
def test_products_of_bytes(largest: int, extreme: int) -> None:
    rng = np.random.default_rng(8)
    low, high = (-128, 127) if largest == SIGNED else (0, largest)
    w, x = rng.integers(low, high + 1, 64).astype(np.int16), rng.integers(-127, 128, 64).astype(np.int8)
    if extreme:
        w[:], x[:] = low or high, extreme
    acc = rng.integers(-1000, 1000, 16, np.int32)
    out, in_memory = np.empty(28, np.int32), w.astype(np.uint8)
    dots_of(largest)(at(in_memory), at(x), at(acc), at(out))
    want = acc + (w.astype(np.int32) * x).reshape(16, 4).sum(1)
    np.testing.assert_array_equal(out, [*want, *want[:8], *want[:4]])


@pytest.mark.parametrize("extreme", [-127, 127, 0])
@pytest.mark.parametrize("largest", [3, 31, 32, 63, 127, ALL_BYTES])
def test_several_products(largest: int, extreme: int) -> None:
    """Four are summed as words where these have room: none may overflow."""
    rng = np.random.default_rng(9)
    low, high = (-128, 127) if largest == SIGNED else (0, largest)
    w, x = (
        rng.integers(low, high + 1, (4, 64)).astype(np.int16),
        rng.integers(-127, 128, (4, 80)).astype(np.int8),
    )
    if extreme:
        w[:], x[:] = low or high, extreme
    acc = rng.integers(-1000, 1000, 16, np.int32)
    out, in_memory = np.empty(16, np.int32), w.astype(np.uint8)
    several_dots_of(largest)(at(in_memory), at(x), at(acc), at(out))
    np.testing.assert_array_equal(out, acc + (w.astype(np.int32) * x[:, :64]).sum(0).reshape(16, 4).sum(1))


@kernel
def crossed(x: int, out: int) -> None:
    a, b, c, d = quads_across(
        load(i32x16, x), load(i32x16, x + 64), load(i32x16, x + 128), load(i32x16, x + 192)
    )
    store(i32x16, a, out)
    store(i32x16, b, out + 64)
    store(i32x16, c, out + 128)
    store(i32x16, d, out + 192)


def test_quads_across() -> None:
    x, out = np.arange(64, dtype=np.int32).reshape(4, 16), np.empty((4, 16), np.int32)
    crossed(at(x), at(out))
    for lane in range(4):
        np.testing.assert_array_equal(out[lane], x.reshape(4, 4, 4)[:, :, lane].T.reshape(16))


@kernel
def gathered(x: int, stride: int, out: int) -> None:
    store(f32x8, gather(f16x8, x, stride), out)
    store(i32x8, zext(gather(i8x8, x, stride)), out + 32)
    store(i32x8, numbers(i32x8, NUMBERS), out + 64)


@pytest.mark.parametrize("stride", [2, 17, 34])
def test_gather(stride: int) -> None:
    x = np.random.default_rng(3).integers(0, 100, 300, np.uint8)
    out = np.empty(24, np.int32)
    gathered(at(x), stride, at(out))
    halves = [x[i * stride : i * stride + 2].copy().view(np.float16)[0] for i in range(8)]
    np.testing.assert_array_equal(out[:8].view(np.float32), np.array(halves, np.float32))
    np.testing.assert_array_equal(out[8:16], x[: 8 * stride : stride][:8])
    assert out[16:].tolist() == list(NUMBERS)


@kernel
def integers(x: int, y: int, out: int) -> None:
    most = maximum(load(i32x16, x), load(i32x16, y))
    store(i32x16, most, out)
    store(i32, hmax(most), out + 64)
    store(f32x16, negated(load(f32x16, x)), out + 68)


def test_integers_and_signs() -> None:
    rng = np.random.default_rng(4)
    x, y = rng.integers(-(2**31), 2**31 - 1, (2, 16)).astype(np.int32)
    out = np.empty(33, np.int32)
    integers(at(x), at(y), at(out))
    assert np.array_equal(out[:16], np.maximum(x, y))
    assert out[16] == np.maximum(x, y).max()
    assert np.array_equal(out[17:], x ^ np.int32(-(2**31)))


@kernel
def lookups(table: int, index: int, out: int) -> None:
    entries = load(i8x16, table)
    store(i32x16, lookup(entries, load(i32x16, index)), out)
    store(i32x8, lookup(entries, load(i32x8, index)), out + 64)
    store(i32x4, lookup(entries, load(i32x4, index)), out + 96)


def test_lookup() -> None:
    rng = np.random.default_rng(9)
    table, index = rng.integers(0, 256, 16, np.uint8), rng.integers(0, 16, 64, np.uint8)
    out = np.empty(112, np.uint8)
    lookups(at(table), at(index), at(out))
    want = table[index]
    np.testing.assert_array_equal(out, [*want, *want[:32], *want[:16]])
