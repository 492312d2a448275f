"""kernels/cuda/ptx.cuh: fragments against CuTe's description of them, written down here independently.

On a real card this shows that the instructions are the right ones; here, that the emulator's are the same.
"""

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.cuda.conftest import Card

INSTRUCTIONS = str(Path(__file__).parent / "instructions.cu")

Modes = tuple[tuple[int, int], ...]
"""(size, stride) of each mode of a layout; strides in row + rows * column."""


@dataclass(frozen=True)
class Fragment:
    """What each lane has of a matrix: lanes are (4, 8), with these strides, and their values are modes."""

    lanes: tuple[int, int]
    values: Modes

    def places(self) -> NDArray[np.intp]:
        """The place of each value of each lane in its matrix, column-major: [32, values]."""
        modes = self.values[::-1]  # the first varies fastest
        offsets = [
            sum(i * stride for i, (_, stride) in zip(index, modes, strict=True))
            for index in product(*(range(size) for size, _ in modes))
        ]
        lane = np.arange(32)
        return (lane % 4 * self.lanes[0] + lane // 4 * self.lanes[1])[:, None] + np.array(offsets)


@dataclass(frozen=True)
class Mma:
    """An instruction: shape, type, and the fragments of A, B and D, as in CuTe's MMA_Traits."""

    rows: int
    depth: int
    type: str
    a: Fragment
    b: Fragment
    d: Fragment


_D = Fragment((32, 1), ((2, 16), (2, 8)))
_A_HALVES, _B_HALVES = Fragment((32, 1), ((2, 16), (2, 8), (2, 128))), Fragment((16, 1), ((2, 8), (2, 64)))
MMA = {
    "m8n8k16_s8": Mma(
        *(8, 16, "i1"),
        Fragment((32, 1), ((4, 8),)),
        Fragment((32, 1), ((4, 8),)),
        Fragment((16, 1), ((2, 8),)),
    ),
    "m16n8k16_s8": Mma(
        *(16, 16, "i1"), Fragment((64, 1), ((4, 16), (2, 8))), Fragment((32, 1), ((4, 8),)), _D
    ),
    "m16n8k32_s8": Mma(
        *(16, 32, "i1"),
        Fragment((64, 1), ((4, 16), (2, 8), (2, 256))),
        Fragment((32, 1), ((4, 8), (2, 128))),
        _D,
    ),
    "m16n8k8_f16": Mma(
        *(16, 8, "f2"), Fragment((32, 1), ((2, 16), (2, 8))), Fragment((16, 1), ((2, 8),)), _D
    ),
    "m16n8k16_f16": Mma(16, 16, "f2", _A_HALVES, _B_HALVES, _D),
    "m16n8k16_bf16": Mma(16, 16, "b2", _A_HALVES, _B_HALVES, _D),
}


def operand(kind: str, shape: tuple[int, int]) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Random values as the tensor cores take them, and what they are."""
    rng = np.random.default_rng(shape[0])
    if kind == "i1":
        raw = rng.integers(-128, 128, shape).astype(np.int8)
        return raw, raw.astype(np.float64)
    values = rng.standard_normal(shape).astype(np.float32)
    if kind == "f2":
        return values.astype(np.float16), values.astype(np.float16).astype(np.float64)
    bits = values.view(np.uint32) >> 16
    return bits.astype(np.uint16), (bits << 16).view(np.float32).astype(np.float64)


@pytest.mark.parametrize("name", MMA)
def test_products(card: Card, name: str) -> None:
    mma = MMA[name]
    if card.arch < 800 and mma.type == "b2":
        pytest.skip("Turing has no bfloat16")
    (a, exact_a), (b, exact_b) = operand(mma.type, (mma.rows, mma.depth)), operand(mma.type, (8, mma.depth))
    accumulators = np.int32 if mma.type == "i1" else np.float32
    d = (np.random.default_rng(0).standard_normal((mma.rows, 8)) * 100).astype(accumulators)
    at_a, at_b, at_d = mma.a.places(), mma.b.places(), mma.d.places()
    assert set(at_d.ravel()) == set(range(d.size))
    fragments = [card.array(matrix.ravel("F")[at]) for matrix, at in ((a, at_a), (b, at_b), (d, at_d))]
    card.run(INSTRUCTIONS, name, 1, 32, fragments)
    result = np.empty(d.size, accumulators)
    result[at_d.ravel()] = card.read(fragments[2]).ravel()
    expected = d.astype(np.float64) + exact_a @ exact_b.T
    np.testing.assert_allclose(result.reshape(8, -1).T, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix(card: Card, count: int, transposed: bool) -> None:
    matrices = np.arange(count * 64, dtype=np.uint16).reshape(count, 8, 8)
    out = card.zeros((32, count, 2), np.uint16)
    name = f"ldmatrix_x{count}{'_trans' if transposed else ''}_"
    card.run(INSTRUCTIONS, name, 1, 32, [card.array(matrices), out])
    pairs = (matrices.transpose(0, 2, 1) if transposed else matrices).reshape(count, 32, 2)
    np.testing.assert_array_equal(card.read(out), pairs.transpose(1, 0, 2))


def test_asynchronous_copies(card: Card) -> None:
    x = np.arange(3 * 32 * 4, dtype=np.int32).reshape(3, 32, 4)
    y = card.zeros((2, 32, 4), np.int32)
    card.run(INSTRUCTIONS, "copies", 1, 32, [card.array(x), y])
    x[2, ::2] = 0
    np.testing.assert_array_equal(card.read(y), x[1:, ::-1])


def test_prefetch_changes_nothing(card: Card) -> None:
    x, y = card.array(np.arange(32, dtype=np.float32)), card.zeros(32, np.float32)
    card.run(INSTRUCTIONS, "prefetch", 1, 32, [x, y])
    np.testing.assert_array_equal(card.read(y), card.read(x))
