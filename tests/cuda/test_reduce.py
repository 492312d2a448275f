"""reduce.cu: sums over devices, in the order given and to the bit, and bf16 for the wire."""

from typing import Any

import numpy as np
import pytest

from ggrun.devices.cuda import grids


def parts_of(count: int, total: int) -> list[np.ndarray]:
    """Of sizes so different that the order of additions shows."""
    rng = np.random.default_rng(count)
    return [
        (rng.standard_normal(total) * 10.0 ** rng.integers(-4, 5, total)).astype(np.float32)
        for _ in range(count)
    ]


def in_order(parts: list[np.ndarray]) -> np.ndarray:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def run_sum(card: Any, name: str, places: list[Any], y: Any, total: int) -> None:
    pointers = [*places, *[0] * (grids.PLACES - len(places))]
    card.run(
        "reduce.cu", name, *grids.elements(total), (*pointers, np.int32(len(places)), y, np.int64(total))
    )


def to_bf16(x: np.ndarray) -> np.ndarray:
    """The nearest of float32's upper halves, of two the even one, by whole numbers."""
    bits = x.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def from_bf16(x: np.ndarray) -> np.ndarray:
    return (x.astype(np.uint32) << 16).view(np.float32)


def narrowed(card: Any, x: np.ndarray) -> Any:
    y = card.array(np.full(x.size, 0xFFFF, np.uint16))
    card.run("reduce.cu", "narrow", *grids.elements(x.size), (card.array(x), y, np.int64(x.size)))
    return y


@pytest.mark.parametrize("total", [1, 6, 1024, 3003])
@pytest.mark.parametrize("count", range(1, grids.PLACES + 1))
def test_sum(card: Any, count: int, total: int) -> None:
    parts = parts_of(count, total)
    y = card.array(np.full(total, np.nan, np.float32))
    run_sum(card, "sum", [card.array(p) for p in parts], y, total)
    np.testing.assert_array_equal(card.read(y), in_order(parts))


@pytest.mark.parametrize("target", [0, 1, 3])
def test_sum_to_one_of_the_places(card: Any, target: int) -> None:
    parts = parts_of(4, 1001)
    places = [card.array(p) for p in parts]
    run_sum(card, "sum", places, places[target], 1001)
    np.testing.assert_array_equal(card.read(places[target]), in_order(parts))


def test_more_places_than_a_launch_takes(card: Any) -> None:
    parts = parts_of(11, 77)
    places = [card.array(p) for p in parts]
    run_sum(card, "sum", places[: grids.PLACES], places[0], 77)
    run_sum(card, "sum", [places[0], *places[grids.PLACES :]], places[9], 77)
    np.testing.assert_array_equal(card.read(places[9]), in_order(parts))


@pytest.mark.parametrize("total", [1, 5, 1024, 2050])
def test_bf16_sum(card: Any, total: int) -> None:
    parts = parts_of(3, total)
    y = card.array(np.full(total, np.nan, np.float32))
    run_sum(card, "sum_bf16", [narrowed(card, p) for p in parts], y, total)
    np.testing.assert_array_equal(card.read(y), in_order([from_bf16(to_bf16(p)) for p in parts]))


def test_bf16_and_back(card: Any) -> None:
    """Ties to even, the largest, what is too large, zeros of both signs, infinity and what is no number."""
    bits = [
        0x3F808000,
        0x3F818000,
        0x3F808001,
        0x7F7F7FFF,
        0x7F7FFFFF,
        0,
        0x80000000,
        0x7F800000,
        0xFF800000,
        1,
    ]
    x = np.array(bits, np.uint32).view(np.float32)
    narrow = narrowed(card, np.append(x, np.float32(np.nan)))
    np.testing.assert_array_equal(card.read(narrow)[:-1], to_bf16(x))
    y = card.array(np.zeros(x.size + 1, np.float32))
    run_sum(card, "sum_bf16", [narrow], y, x.size + 1)
    np.testing.assert_array_equal(card.read(y)[:-1], from_bf16(to_bf16(x)))
    assert np.isnan(card.read(y)[-1])


def test_nothing(card: Any) -> None:
    x = card.array(np.full(8, 7, np.float32))
    run_sum(card, "sum", [x, x], x, 0)
    run_sum(card, "sum_bf16", [x, x], x, 0)
    card.run("reduce.cu", "narrow", *grids.elements(0), (x, x, np.int64(0)))
    assert (card.read(x) == 7).all()
