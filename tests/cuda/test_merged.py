"""Which products are launched together."""

from collections.abc import Sequence

import numpy as np
import pytest

from ggrun.devices.base import Inputs, Limits, Rows
from ggrun.devices.cuda.device import Cuda
from ggrun.devices.cuda.memory import CudaWeight
from ggrun.devices.cuda.program import FEW, CudaProgram
from ggrun.devices.cuda.recorder import CudaRecorder
from ggrun.gguf import FORMATS, Tensor
from tests.cuda.weights import random_rows
from tools.cuda_emulator.driver import EmulatedDriver

K = 64


@pytest.fixture
def device() -> Cuda:
    return Cuda(EmulatedDriver(), "card")


def weight(device: Cuda, name: str = "Q8_0", rows: int = 40, k: int = K) -> CudaWeight:
    data = random_rows(name, rows, k, np.random.default_rng(rows))
    tensor = Tensor("w", (k, rows), FORMATS[name], data.view(np.uint8).reshape(-1))
    return device.weight(tensor, (0, rows), (0, k))


def launched(ops: CudaRecorder, program: CudaProgram, n: int) -> list[str]:
    """The kernels of products."""

    def count(inputs: Inputs) -> None:
        inputs.counts[Rows.TOKENS] = n

    ops.feed(count)
    return [work.name for work in program.launches(ops.counts) if work.name.startswith("mat")]


def recorded(device: Cuda, weights: Sequence[CudaWeight]) -> tuple[CudaRecorder, CudaProgram]:
    """A product of the same rows with each."""
    ops = device.recorder(Limits(16, 1, 1, 1))
    x = ops.input(K)
    kept = [ops.linear(x, w) for w in weights]
    program = ops.finish()
    assert len({ops.place(y).address for y in kept}) == len(weights)
    return ops, program


@pytest.mark.parametrize(
    ("count", "kernels"),
    [
        (1, ["matvec"]),
        (2, ["matvec_merged"]),
        (3, ["matvec_merged"]),
        (4, ["matvec_merged", "matvec"]),
        (5, ["matvec_merged", "matvec_merged"]),
    ],
)
def test_up_to_three(count: int, kernels: list[str], device: Cuda) -> None:
    ops, program = recorded(device, [weight(device, rows=32 + i) for i in range(count)])
    for n in (1, FEW):
        assert launched(ops, program, n) == kernels
    assert launched(ops, program, FEW + 1) == ["matmul"] * count


def test_formats_go_apart(device: Cuda) -> None:
    names = ("Q8_0", "Q4_0", "Q4_0", "F16", "Q4_0")
    ops, program = recorded(device, [weight(device, name) for name in names])
    assert launched(ops, program, 1) == ["matvec", "matvec_merged", "matvec", "matvec"]


def test_other_rows_and_sums_go_apart(device: Cuda) -> None:
    ops = device.recorder(Limits(16, 1, 1, 1))
    x, other, onto = ops.input(K), ops.input(K), ops.input(40)
    w = weight(device)
    kept = [ops.linear(x, w), ops.linear(other, w)]
    summed = ops.linear(other, w)
    ops.add(summed, onto)
    kept.append(ops.linear(other, w))
    assert launched(ops, ops.finish(), 1) == ["matvec"] * 4


def test_results_that_lie_in_one_place_go_apart(device: Cuda) -> None:
    """Nobody wanted the first."""
    ops = device.recorder(Limits(16, 1, 1, 1))
    x, w = ops.input(K), weight(device)
    places = [ops.place(ops.linear(x, w)).address for _ in range(2)]
    assert places[0] == places[1]
    assert launched(ops, ops.finish(), 1) == ["matvec", "matvec"]
