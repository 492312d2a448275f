"""The SIMD vocabulary against NumPy, one small kernel a word."""

import numpy as np
import pytest
from ggrun.kernels.cpu.kinds import Lanes
from ggrun.kernels.cpu.simd import (
    address_of,
    bf16,
    bf16x16,
    bitcast,
    divide,
    f16,
    f16x8,
    f16x16,
    f32,
    f32x8,
    f32x16,
    fma,
    hmax,
    hsum,
    i8,
    i8x8,
    i8x16,
    i16,
    i32,
    i32x8,
    i32x16,
    i64,
    join,
    load,
    maximum,
    minimum,
    negated,
    rounded,
    sext,
    shuffle,
    splat,
    store,
    to_f32,
    to_i32,
    u8,
    u16,
    u32,
    zero,
    zext,
)

from ggrun.kernels import load_cpu

kernel = load_cpu("runtime").kernel
REVERSED = Lanes(range(15, -1, -1))
ODD = Lanes(range(1, 16, 2))
CONSTANTS = np.array([3, -1, 4, 1, -5, 9, 2, -6], np.int32)


def at(array: np.ndarray) -> int:
    """The address of an array."""
    return int(array.ctypes.data)


def floats() -> np.ndarray:
    """Floats of every size, ties between halves, infinities and none: float32, a multiple of 16 of them."""
    rng = np.random.default_rng(3)
    bits = rng.integers(0, 1 << 32, 4096, np.uint32)
    near = rng.integers(0x33000000, 0x47900000, 4096, np.uint32)  # around the range of halves
    sizes = np.concatenate([near & 0xFFFFF000, near & 0xFFFF8000, near | 0x80000000])  # ties, and negative
    special = np.array([0, -0.0, np.inf, -np.inf, np.nan, -np.nan, 65504, 65519.996, 65520, 2**-25, 1e-45])
    special = np.resize(special.astype(np.float32), 16)
    # Not a number with the least and the most in its mantissa: rounding must not make it infinite, or 0.
    nans = np.resize(np.array([0x7F800001, 0x7FFFFFFF, 0xFF800001, 0xFFFFFFFF], np.uint32), 16)
    return np.concatenate([x.view(np.float32) for x in (bits, near, sizes, special, nans)])


def to_bf16(x: np.ndarray) -> np.ndarray:
    """Rounded to nearest even: uint16."""
    bits = x.view(np.uint32).astype(np.uint64)
    up = (bits + 0x7FFF + (bits >> np.uint64(16) & np.uint64(1))) >> np.uint64(16)
    return np.where(np.isnan(x), 0x7FC0, up).astype(np.uint16)


def of_bf16(x: np.ndarray) -> np.ndarray:
    """As float32."""
    return (x.astype(np.uint32) << np.uint32(16)).view(np.float32)


# ---------------------------------------------------------------- memory


@kernel
def widen_f16(x: int, y: int, n: int) -> None:
    for i in range(0, n, 16):
        store(f32x16, load(f16x16, x + 2 * i), y + 4 * i)


@kernel
def widen_f16_by_eight(x: int, y: int, n: int) -> None:
    for i in range(0, n, 8):
        store(f32x8, load(f16x8, x + 2 * i), y + 4 * i)


@kernel
def widen_f16_alone(x: int, y: int, n: int) -> None:
    for i in range(n):
        store(f32, load(f16, x + 2 * i), y + 4 * i)


@kernel
def widen_bf16(x: int, y: int, n: int) -> None:
    for i in range(0, n, 16):
        store(f32x16, load(bf16x16, x + 2 * i), y + 4 * i)


@kernel
def widen_bf16_alone(x: int, y: int, n: int) -> None:
    for i in range(n):
        store(f32, load(bf16, x + 2 * i), y + 4 * i)


@pytest.mark.parametrize("widen", [widen_f16, widen_f16_by_eight, widen_f16_alone], ids=lambda k: k.name)
def test_every_half_widens(widen) -> None:
    halves = np.arange(65536, dtype=np.uint16)
    out = np.empty(65536, np.float32)
    widen(at(halves), at(out), 65536)
    np.testing.assert_array_equal(out, halves.view(np.float16).astype(np.float32))
    np.testing.assert_array_equal(np.signbit(out), halves >= 0x8000)


@pytest.mark.parametrize("widen", [widen_bf16, widen_bf16_alone], ids=lambda k: k.name)
def test_every_bfloat_widens(widen) -> None:
    halves = np.arange(65536, dtype=np.uint16)
    out = np.empty(65536, np.float32)
    widen(at(halves), at(out), 65536)
    np.testing.assert_array_equal(out.view(np.uint32), of_bf16(halves).view(np.uint32))


@kernel
def narrow_f16(x: int, y: int, n: int) -> None:
    for i in range(0, n, 16):
        store(f16x16, load(f32x16, x + 4 * i), y + 2 * i)


@kernel
def narrow_f16_alone(x: int, y: int, n: int) -> None:
    for i in range(n):
        store(f16, load(f32, x + 4 * i), y + 2 * i)


@kernel
def narrow_bf16(x: int, y: int, n: int) -> None:
    for i in range(0, n, 16):
        store(bf16x16, load(f32x16, x + 4 * i), y + 2 * i)


@kernel
def narrow_bf16_alone(x: int, y: int, n: int) -> None:
    for i in range(n):
        store(bf16, load(f32, x + 4 * i), y + 2 * i)


@pytest.mark.parametrize("narrow", [narrow_f16, narrow_f16_alone], ids=lambda k: k.name)
def test_floats_narrow_to_halves(narrow) -> None:
    x = floats()
    out = np.empty(len(x), np.float16)
    narrow(at(x), at(out), len(x))
    with np.errstate(over="ignore", invalid="ignore"):
        np.testing.assert_array_equal(out, x.astype(np.float16))


@pytest.mark.parametrize("narrow", [narrow_bf16, narrow_bf16_alone], ids=lambda k: k.name)
def test_floats_narrow_to_bfloats(narrow) -> None:
    x = floats()
    out = np.empty(len(x), np.uint16)
    narrow(at(x), at(out), len(x))
    np.testing.assert_array_equal(of_bf16(out), of_bf16(to_bf16(x)))


@kernel
def load_integers(x: int, y: int) -> None:
    store(i64, load(u8, x), y)
    store(i64, load(i8, x), y + 8)
    store(i64, load(u16, x), y + 16)
    store(i64, load(i16, x), y + 24)
    store(i64, load(u32, x), y + 32)
    store(i64, load(i32, x), y + 40)
    store(i64, load(i64, x), y + 48)


@kernel
def store_integers(x: int, y: int) -> None:
    store(i64, load(i64, x), y)
    store(i32, load(i64, x), y + 8)
    store(u16, load(i64, x), y + 12)
    store(u8, load(i64, x), y + 14)


def test_integers_in_memory() -> None:
    x = np.array([0xF1E2D3C4B5A69788], np.uint64)
    loaded = np.empty(7, np.int64)
    load_integers(at(x), at(loaded))
    want = [
        x.view(kind)[0] for kind in (np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.int64)
    ]
    assert loaded.tolist() == [int(v) for v in want]
    stored = np.zeros(16, np.uint8)
    store_integers(at(x), at(stored))
    raw = x.view(np.uint8).tolist()
    assert stored.tolist() == [*raw, *raw[:4], *raw[:2], *raw[:1], 0]


@kernel
def constants(y: int) -> None:
    store(i32x8, load(i32x8, address_of(CONSTANTS)), y)


def test_address_of_a_global_array() -> None:
    out = np.empty(8, np.int32)
    constants(at(out))
    assert out.tolist() == CONSTANTS.tolist()


# ---------------------------------------------------------------- arithmetic


@kernel
def float_arithmetic(x: int, y: int, out: int) -> None:
    a, c = load(f32x16, x), load(f32x16, y)
    store(f32x16, a + c, out)
    store(f32x16, a - c, out + 64)
    store(f32x16, a * c, out + 128)
    store(f32x16, divide(a, c), out + 192)
    store(f32x16, maximum(a, c), out + 256)
    store(f32x16, minimum(a, c), out + 320)
    store(f32x16, negated(a), out + 384)
    store(f32x16, rounded(a), out + 448)
    store(f32x16, splat(f32x16, load(f32, x)), out + 512)
    store(f32x16, zero(f32x16), out + 576)
    store(f32x16, fma(a, c, a), out + 640)


def test_float_arithmetic() -> None:
    rng = np.random.default_rng(4)
    a, c = (10 * rng.standard_normal((2, 16))).astype(np.float32)
    a[:4] = [0.5, 1.5, -2.5, -0.5]  # ties
    out = np.empty((11, 16), np.float32)
    float_arithmetic(at(a), at(c), at(out))
    want = [a + c, a - c, a * c, a / c, np.maximum(a, c), np.minimum(a, c), -a, np.rint(a)]
    np.testing.assert_array_equal(out[:10], [*want, np.full(16, a[0]), np.zeros(16)])
    np.testing.assert_allclose(out[10], a.astype(np.float64) * c + a, rtol=1e-6, atol=1e-5)


@kernel
def integer_arithmetic(x: int, y: int, out: int) -> None:
    a, c = load(i32x16, x), load(i32x16, y)
    store(i32x16, a + c, out)
    store(i32x16, a - c, out + 64)
    store(i32x16, a * c, out + 128)
    store(i32x16, a & c, out + 192)
    store(i32x16, a | c, out + 256)
    store(i32x16, a ^ 0x80808080, out + 320)
    store(i32x16, a << 3, out + 384)
    store(i32x16, a >> 3, out + 448)
    store(i32x16, a >> (c & 31), out + 512)


def test_integer_arithmetic() -> None:
    a, c = np.random.default_rng(5).integers(0, 1 << 32, (2, 16), np.uint32)
    out = np.empty((9, 16), np.uint32)
    integer_arithmetic(at(a), at(c), at(out))
    want = [
        a + c,
        a - c,
        a * c,
        a & c,
        a | c,
        a ^ np.uint32(0x80808080),
        a << np.uint32(3),
        a >> np.uint32(3),
    ]
    want.append(a >> (c & np.uint32(31)))
    np.testing.assert_array_equal(out, want)


@kernel
def conversions(x: int, y: int, out: int) -> None:
    store(i32x16, zext(load(i8x16, x)), out)
    store(i32x16, sext(load(i8x16, x)), out + 64)
    store(i32x16, to_i32(load(f32x16, y)), out + 128)
    store(f32x16, to_f32(sext(load(i8x16, x))), out + 192)
    store(i32x8, zext(bitcast(i8x8, load(i64, x))), out + 256)
    store(i8x16, load(i32x16, y), out + 288)


def test_conversions() -> None:
    rng = np.random.default_rng(6)
    x, y = rng.integers(0, 256, 16, np.uint8), (1000 * rng.standard_normal(16)).astype(np.float32)
    out = np.empty(76, np.int32)
    conversions(at(x), at(y), at(out))
    np.testing.assert_array_equal(out[:16], x)
    np.testing.assert_array_equal(out[16:32], x.view(np.int8))
    np.testing.assert_array_equal(out[32:48], np.trunc(y))
    np.testing.assert_array_equal(out[48:64].view(np.float32), x.view(np.int8))
    np.testing.assert_array_equal(out[64:72], x[:8])
    np.testing.assert_array_equal(out[72:].view(np.uint8), y.view(np.uint8)[::4])


@kernel
def lanes(x: int, y: int, out: int) -> None:
    a = load(i32x16, x)
    store(i32x16, shuffle(a, REVERSED), out)
    store(i32x8, shuffle(a, ODD), out + 64)
    store(i32x16, join(load(i32x8, x + 32), load(i32x8, x)), out + 96)
    store(i32, hsum(a), out + 160)
    store(f32, hsum(load(f32x16, y)), out + 164)
    store(f32, hmax(load(f32x16, y)), out + 168)


def test_lanes() -> None:
    rng = np.random.default_rng(7)
    x, y = rng.integers(-1000, 1000, 16, np.int32), rng.integers(-1000, 1000, 16).astype(np.float32)
    out = np.empty(43, np.int32)
    lanes(at(x), at(y), at(out))
    want = [*x[::-1], *x[1::2], *x[8:], *x[:8], x.sum()]
    np.testing.assert_array_equal(out[:41], want)
    assert out[41:].view(np.float32).tolist() == [y.sum(), y.max()]
