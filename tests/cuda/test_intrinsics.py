"""What the emulator has built in does what numpy says; with --device cuda a card does the same."""

from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.cuda.conftest import Card

INTRINSICS = str(Path(__file__).parent / "intrinsics.cu")
RNG = np.random.default_rng(0)
WORDS = np.concatenate([RNG.integers(-(2**31), 2**31, 60), [0, -1, 1 << 30, -(2**31)]]).astype(np.int32)
OTHERS = np.roll(WORDS, 7) ^ np.where(np.arange(64) % 4, 0, WORDS)
FLOATS = np.concatenate(
    [
        RNG.standard_normal(2000) * 10.0 ** RNG.uniform(-9, 9, 2000),
        (np.arange(1040) + 0.5) * 2.0**-25,  # ties between subnormal halves
        1 + (np.arange(1000) + 0.5) * 2.0**-11,  # and between others
        [0.0, -0.0, np.inf, -np.inf, np.nan, 65504, 65519.99, 65520, 1e-8, 3e38, 1e-40, 2.5, 3.5, -2.5],
        np.zeros(42),
    ]
).astype(np.float32)


def each(card: Card, name: str, *inputs: NDArray[Any], dtype: Any, per_thread: int = 1) -> NDArray[Any]:
    """A kernel with a thread for each number of its inputs."""
    n = len(inputs[0])
    y = card.zeros((n, per_thread) if per_thread > 1 else n, dtype)
    assert n % 64 == 0
    card.run(INTRINSICS, name, n // 64, 64, [*(card.array(x) for x in inputs), y])
    return card.read(y)


def bits(x: NDArray[Any]) -> NDArray[Any]:
    """As integers; all that are no numbers are the same."""
    whole = x.view(f"u{x.itemsize}").copy()
    whole[np.isnan(x)] = 0
    return whole


def test_halves(card: Card) -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    result = each(card, "half_to_float", every, dtype=np.float32)
    np.testing.assert_array_equal(bits(result), bits(every.astype(np.float32)))
    with np.errstate(over="ignore"):
        expected = FLOATS.astype(np.float16)
    np.testing.assert_array_equal(bits(each(card, "float_to_half", FLOATS, dtype=np.float16)), bits(expected))


def test_bfloat16(card: Card) -> None:
    every = np.arange(1 << 16, dtype=np.uint16)
    result = each(card, "bfloat16_to_float", every, dtype=np.float32)
    np.testing.assert_array_equal(bits(result), bits((every.astype(np.uint32) << 16).view(np.float32)))
    result = each(card, "float_to_bfloat16", FLOATS, dtype=np.uint16)
    wide = FLOATS.view(np.uint32).astype(np.uint64)
    expected = (wide + 0x7FFF + (wide >> 16 & 1)) >> 16
    numbers = ~np.isnan(FLOATS)
    np.testing.assert_array_equal(result[numbers], expected[numbers].astype(np.uint16))
    assert np.isnan((result[~numbers].astype(np.uint32) << 16).view(np.float32)).all()


def test_arithmetic_of_halves_rounds_each_time(card: Card) -> None:
    x = RNG.standard_normal((64, 2, 2)).astype(np.float16)
    y = card.zeros((64, 4, 2), np.float16)
    card.run(INTRINSICS, "half_arithmetic", 1, 64, [card.array(x), y])
    a, b = x[:, 0].astype(np.float64), x[:, 1].astype(np.float64)
    expected = np.stack([a + b, a * b, a * b + b, a - b], axis=1).astype(np.float16)
    np.testing.assert_array_equal(card.read(y), expected)


def test_floats_to_ints(card: Card) -> None:
    result = each(card, "float_to_int", FLOATS, dtype=np.int32, per_thread=3)
    wide = np.nan_to_num(FLOATS.astype(np.float64), nan=0.0)
    for column, rounded in zip(result.T, (np.rint(wide), np.trunc(wide), np.floor(wide)), strict=True):
        np.testing.assert_array_equal(column, np.clip(rounded, -(2**31), 2**31 - 1).astype(np.int32))


def test_bytes(card: Card) -> None:
    result = each(card, "bytes", WORDS, OTHERS, dtype=np.int32, per_thread=8)
    a, b = (x.view(np.int8).reshape(-1, 4).astype(np.int32) for x in (WORDS, OTHERS))
    ua, ub = (x.view(np.uint8).reshape(-1, 4).astype(np.int32) for x in (WORDS, OTHERS))

    def word(values: NDArray[Any]) -> NDArray[np.int32]:
        return np.ascontiguousarray(values.astype(np.uint8)).view(np.int32)[:, 0]

    both = np.concatenate([ua, ub], axis=1)
    expected = [
        (a * b).sum(1) - 5,
        (ua * ub).sum(1) + 5,
        word(a - b),
        word(np.clip(a - b, -128, 127)),
        word(a + b),
        word(np.where(ua == ub * [0, 1, 1, 0], 255, 0)),
        word(both[:, [0, 5, 2, 7]]),
        word(both[:, [2, 4, 4, 0]]),
    ]
    np.testing.assert_array_equal(result, np.stack(expected, axis=1))


def test_bits(card: Card) -> None:
    result = each(card, "bits", WORDS, OTHERS, dtype=np.int32, per_thread=8).view(np.uint32)
    pairs = zip(WORDS.view(np.uint32).tolist(), OTHERS.view(np.uint32).tolist(), strict=True)
    for row, (u, v) in zip(result.tolist(), pairs, strict=True):
        signed = [x - (x >> 31 << 32) for x in (u, v)]
        wide = v << 32 | u
        assert row == [
            u.bit_count(),
            32 - u.bit_length(),
            (u & -u).bit_length(),
            int(f"{u:032b}"[::-1], 2),
            wide >> 5 & 0xFFFFFFFF,
            wide << 5 >> 32 & 0xFFFFFFFF,
            u * v >> 32,
            signed[0] * signed[1] >> 32 & 0xFFFFFFFF,
        ]


def test_shuffles_and_votes_of_a_warp(card: Card) -> None:
    y = card.zeros((32, 8), np.int32)
    card.run(INTRINSICS, "shuffles", 1, 32, [y])
    for lane, row in enumerate(card.read(y).tolist()):
        down = lane + 3 if lane % 16 < 13 else lane
        up = lane - 2 if lane % 8 >= 2 else lane
        third = sum(1 << i for i in range(0, 32, 3))
        assert row == [lane // 2, lane // 8 * 8 + 3, lane ^ 5, down, up, third, 1, 0]


def test_votes_of_a_block(card: Card) -> None:
    y = card.zeros((64, 4), np.int32)
    card.run(INTRINSICS, "votes", 1, 64, [y])
    for i, row in enumerate(card.read(y).tolist()):
        same = sum(1 << lane for lane in range(32) if (i // 32 * 32 + lane) % 5 == i % 5)
        assert row == [22, 1, 1, same - (same >> 31 << 32)]


def test_atomics(card: Card) -> None:
    y, total = card.zeros(6 + 640, np.int32), card.zeros(1, np.float32)
    card.run(INTRINSICS, "atomics", 10, 64, [y, total])
    result = card.read(y)
    assert result[:6].tolist() == [640, 639, -639, -1, reduce(int.__xor__, range(640)), 7]
    assert not result[6:].any()
    assert card.read(total)[0] == 320


def test_reductions(card: Card) -> None:
    if card.arch < 800:
        pytest.skip("Turing has none")
    x = WORDS[:32]
    y = card.zeros((32, 8), np.int32)
    card.run(INTRINSICS, "reductions", 1, 32, [card.array(x), y])
    u = x.view(np.uint32)
    expected = [x.sum(dtype=np.int32), x.min(), x.max(), u.min(), u.max()]
    expected += [f.reduce(u) for f in (np.bitwise_and, np.bitwise_or, np.bitwise_xor)]
    np.testing.assert_array_equal(card.read(y), [[int(np.array(e).astype(np.int32)) for e in expected]] * 32)
