"""rope.cu against float64: angles of far positions, both styles, part of a head, queries that grow."""

from typing import Any

import numpy as np
import pytest

from ggrun.devices.cuda import grids


def table(
    card: Any,
    positions: np.ndarray,
    frequencies: np.ndarray,
    growth: tuple[float, float, float] = (1.0, 0.0, 1.0),
) -> Any:
    """The kernel's table [n, dims / 2, 2]; growth: magnitude, slope, period."""
    n, half = len(positions), len(frequencies)
    y = card.array(np.full((max(n, 1), half, 2), np.nan, np.float32))
    args = card.array(positions), card.array(frequencies), y, np.int32(n), np.int32(2 * half)
    card.run(
        "rope.cu", "rope_table", *grids.rope_table(n, 2 * half), (*args, *(np.float32(g) for g in growth))
    )
    return y


def exact_table(positions: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
    angles = positions.astype(np.float64)[:, None] * frequencies.astype(np.float64)
    return np.stack([np.cos(angles), np.sin(angles)], -1)


def frequencies_of(dims: int, base: float = 1e4) -> np.ndarray:
    return (base ** (-np.arange(0, dims, 2) / dims)).astype(np.float32)


def rotated(x: np.ndarray, angles: np.ndarray, neighbours: bool) -> np.ndarray:
    """x [n, heads, head_dim] in float64, by angles [n, dims / 2, 2]."""
    y, half = x.astype(np.float64), angles.shape[1]
    first, second = (
        (slice(0, 2 * half, 2), slice(1, 2 * half, 2)) if neighbours else (slice(half), slice(half, 2 * half))
    )
    u, v = y[..., first].copy(), y[..., second].copy()
    c, s = angles[:, None, :, 0], angles[:, None, :, 1]
    y[..., first], y[..., second] = u * c - v * s, u * s + v * c
    return y


def rotate(
    card: Any, q: np.ndarray, of_q: Any, k: np.ndarray, of_k: Any, dims: int, neighbours: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Queries [n, heads, head_dim] and keys through the kernel."""
    n, q_heads, dim = q.shape
    k_heads = k.shape[1]
    on_card = card.array(q), card.array(k)
    sizes = np.int32(n), np.int32(dim), np.int32(dims), np.int32(neighbours)
    launch = grids.rope(n, q_heads + k_heads, dim, dims)
    card.run(
        "rope.cu", "rope", *launch,
        (on_card[0], of_q, np.int32(q_heads), on_card[1], of_k, np.int32(k_heads), *sizes),
    )  # fmt: skip
    return card.read(on_card[0]), card.read(on_card[1])


def test_angles_of_far_positions(card: Any) -> None:
    """The error does not grow with the position: float32 angles would be off by 4e-3 at 131,072."""
    positions = np.array([0, 1, 2, 3, 1000, 131_071, 131_072, 1_048_575, 100_000_000], np.int32)
    frequencies = np.concatenate([frequencies_of(128), frequencies_of(128, 5e5), np.float32([1.0, 2.5])])
    error = np.abs(card.read(table(card, positions, frequencies)) - exact_table(positions, frequencies))
    assert error.max() < 1e-7


def test_many_angles(card: Any) -> None:
    positions = np.random.default_rng(0).integers(0, 1 << 20, 200).astype(np.int32)
    frequencies = frequencies_of(130)
    error = np.abs(card.read(table(card, positions, frequencies)) - exact_table(positions, frequencies))
    assert error.max() < 1e-7


@pytest.mark.parametrize("period", [8192.0, 3.0])
def test_queries_grow(card: Any, period: float) -> None:
    positions = np.array([0, 2, 3, 8191, 8192, 100_000, 262_143], np.int32)
    growth = 1.25 * (1.0 + 0.1 * np.log(1.0 + np.floor(positions / period)))
    y = card.read(table(card, positions, frequencies_of(32), (1.25, 0.1, period)))
    exact = exact_table(positions, frequencies_of(32)) * growth[:, None, None]
    assert (np.abs(y - exact) / growth[:, None, None]).max() < 3e-7


# head_dim, dims: whole and partial heads, four pairs a thread and one.
SHAPES = [(64, 64), (128, 128), (96, 64), (80, 20), (30, 8), (36, 36), (10, 6), (2, 2)]


@pytest.mark.parametrize("neighbours", [True, False])
@pytest.mark.parametrize(("dim", "dims"), SHAPES)
def test_rotation(card: Any, dim: int, dims: int, neighbours: bool) -> None:
    rng = np.random.default_rng(dim)
    q, k = (rng.standard_normal((3, heads, dim)).astype(np.float32) for heads in (5, 2))
    positions, frequencies = np.array([7, 0, 131_072], np.int32), frequencies_of(dims)
    of_q, of_k = table(card, positions, frequencies, (1.0, 0.5, 100.0)), table(card, positions, frequencies)
    got_q, got_k = rotate(card, q, of_q, k, of_k, dims, neighbours)
    # A pair may cancel: the error is that of its length, and what is not rotated has the same bits.
    assert np.abs(got_q - rotated(q, card.read(of_q), neighbours)).max() < 1e-6 * np.abs(got_q).max()
    assert np.abs(got_k - rotated(k, card.read(of_k), neighbours)).max() < 1e-6 * np.abs(got_k).max()
    np.testing.assert_array_equal(got_q[..., dims:], q[..., dims:])


def test_one_buffer_alone(card: Any) -> None:
    q = np.random.default_rng(0).standard_normal((2, 3, 16)).astype(np.float32)
    angles = table(card, np.array([5, 6], np.int32), frequencies_of(16))
    x = card.array(q)
    sizes = np.int32(2), np.int32(16), np.int32(16), np.int32(1)
    card.run(
        "rope.cu", "rope", *grids.rope(2, 3, 16, 16), (x, angles, np.int32(3), 0, 0, np.int32(0), *sizes)
    )
    np.testing.assert_allclose(card.read(x), rotated(q, card.read(angles), True), atol=1e-6)


def test_no_rows(card: Any) -> None:
    y = table(card, np.zeros(0, np.int32), frequencies_of(16))
    assert np.isnan(card.read(y)).all()
    empty = np.zeros((0, 2, 16), np.float32)
    rotate(card, empty, y, empty, y, 16, True)
