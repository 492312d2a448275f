"""Products with many rows by cuBLAS, which numpy stands in for on the emulator, against float64."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ggrun.devices.base import Inputs, Limits
from ggrun.devices.cuda import grids
from ggrun.devices.cuda.device import Cuda
from ggrun.devices.cuda.driver import Gemm
from ggrun.devices.cuda.gemm import GemmFrom, halves_bytes, pieces, scratch_bytes
from ggrun.devices.cuda.matvec import FLOATS
from ggrun.devices.cuda.memory import CudaWeight
from ggrun.gguf import FORMATS as KNOWN
from ggrun.gguf import Tensor
from tests.cuda.conftest import Card
from tests.cuda.test_matmul import ONE_CARD
from tests.cuda.weights import FORMATS, exact, random_rows
from tools.cuda_emulator.driver import EmulatedDriver
from tools.cuda_emulator.kernels import KernelError

ALWAYS, NEVER = GemmFrom(9, 9, 9), GemmFrom()
HALVED = [name for name in FORMATS if name != "F32"]


class Product:
    """Weights and rows of floats; `right` is their product in float64, of values that are exact."""

    def __init__(self, name: str, rows: int, k: int, n: int) -> None:
        rng = np.random.default_rng(rows * n + k)
        self.n, self.rows, self.k = n, rows, k
        data = random_rows(name, rows, k, rng)
        self.tensor = Tensor("w", (k, rows), KNOWN[name], data.view(np.uint8).reshape(-1))
        self.x = rng.standard_normal((n, k)).astype(np.float32)
        self.w = exact(name, data)

    @property
    def right(self) -> np.ndarray:
        """[n, rows]."""
        return self.x.astype(np.float64) @ self.w.T

    def run(self, card: Card, by: GemmFrom, scale: float = 1.0, **more: np.ndarray) -> np.ndarray:
        """What a device makes of it; more: bias, residual."""
        device = Cuda(card.driver, "card", gemm_from=by)
        ops = device.recorder(Limits(self.n, 1, 1, 1))
        x, onto = ops.input(self.k), ops.input(self.rows)
        bias = device.vector(more["bias"]) if "bias" in more else None
        device.write(ops.place(x), self.x)
        y = ops.linear(x, device.weight(self.tensor, (0, self.rows), (0, self.k)), scale, bias)
        if "residual" in more:
            device.write(ops.place(onto), more["residual"])
            ops.add(y, onto)
            y = onto
        place, program = ops.place(y), ops.finish()
        ops.feed(self._count)
        program.run()
        found = np.empty((self.n, self.rows), np.float32)
        device.download(place, self.n, found)
        device.stream.synchronize()
        return found

    def _count(self, inputs: Inputs) -> None:
        inputs.counts[:] = self.n, 0, 0


def error(got: np.ndarray, right: np.ndarray) -> float:
    """Of the root of the mean square."""
    return float(np.sqrt(np.square(got - right).mean() / np.square(right).mean()))


@ONE_CARD
@pytest.mark.parametrize("name", HALVED)
def test_every_format_is_closer_than_by_tiles(card: Card, name: str) -> None:
    case = Product(name, 70, 512, 17)
    found = error(case.run(card, ALWAYS), case.right)
    assert found <= 4e-4  # two roundings to 11 bits
    if name not in FLOATS:
        assert found < 0.2 * error(case.run(card, NEVER), case.right)


@pytest.mark.parametrize(("rows", "n"), [(1, 9), (5, 513), (130, 16), (300, 33)])
@pytest.mark.parametrize("name", ["Q4_K", "F16"])
def test_odd_sizes(card: Card, name: str, rows: int, n: int) -> None:
    case = Product(name, rows, 256, n)
    assert error(case.run(card, ALWAYS), case.right) <= 4e-4


@ONE_CARD
@pytest.mark.parametrize("k", [1, 7, 76, 257])
def test_odd_widths(card: Card, k: int) -> None:
    for name in ("F16", "BF16"):
        case = Product(name, 66, k, 10)
        assert error(case.run(card, ALWAYS), case.right) <= 6e-4


@ONE_CARD
@pytest.mark.parametrize("piece", [1 << 20, 256 * 2 * 128, 256 * 2 * 100, 100])
def test_pieces_of_the_weights(card: Card, piece: int) -> None:
    case = Product("Q6_K", 300, 256, 12)
    assert error(case.run(card, replace(ALWAYS, piece=piece)), case.right) <= 4e-4


@pytest.mark.parametrize(
    ("rows", "piece", "sizes"),
    [
        (300, 300 * 512, [300]),  # as large as the piece
        (300, 299 * 512, [256, 44]),  # whole tiles
        (1000, 512 * 512, [512, 488]),
        (1000, 500 * 512, [384, 384, 232]),  # about equally many
        (300, 100 * 512, [100, 100, 100]),  # less than a tile
        (3, 1, [1, 1, 1]),
    ],
)
def test_how_weights_are_cut(rows: int, piece: int, sizes: list[int]) -> None:
    memory = Cuda(EmulatedDriver(), "card").working_memory(16)
    w = CudaWeight("Q6_K", memory, memory.address, rows, 256, 210)
    found = list(pieces(w, piece))
    assert [part.rows for part, _ in found] == sizes
    assert [first for _, first in found] == [sum(sizes[:i]) for i in range(len(sizes))]
    assert max(sizes) * 512 <= scratch_bytes(w, piece)


@ONE_CARD
@pytest.mark.parametrize("magnitude", [1.0, 1e6, 1e-9])
def test_scale_bias_and_residual(card: Card, magnitude: float) -> None:
    case, rng = Product("Q5_0", 70, 64, 11), np.random.default_rng(1)
    case.x[::3] *= magnitude
    bias = rng.standard_normal(70).astype(np.float32)
    residual = rng.standard_normal((11, 70)).astype(np.float32)
    right = 0.5 * case.right
    for more, want in (
        ({}, right),
        ({"bias": bias}, right + bias),
        ({"residual": residual}, right + residual),
        ({"bias": bias, "residual": residual}, right + bias + residual),
    ):
        got = case.run(card, ALWAYS, 0.5, **more)
        for row in range(11):  # those that are small have errors that are small
            assert error(got[row], want[row]) <= 5e-4


@ONE_CARD
@pytest.mark.parametrize("never", [[], ["Q6_K"]])
def test_both_ways_in_one_recording(card: Card, never: list[str]) -> None:
    """Rows are too few for one format and enough for another; they are made what is wanted, no more."""
    device = Cuda(card.driver, "card", gemm_from=GemmFrom(quantized=20, floats=10))
    ops = device.recorder(Limits(32, 1, 1, 1))
    cases = [Product(name, 40, 256, 32) for name in ("F16", "Q8_0", "F32", *never)]
    x = ops.input(256)
    device.write(ops.place(x), cases[0].x)
    found = [ops.linear(x, device.weight(c.tensor, (0, 40), (0, 256))) for c in cases]
    program = ops.finish()
    for n, kinds in ((9, "..."), (10, "g.."), (19, "g.."), (20, "gg."), (32, "gg.")):
        ops.feed(lambda inputs, n=n: inputs.counts.__setitem__(0, n))
        launches = program.launches(ops.counts)
        assert sum(launch.name == "gemm" for launch in launches) == kinds.count("g")
        assert sum(launch.name == "to_halves" for launch in launches) == ("g" in kinds)
        assert sum(launch.name == "quantize" for launch in launches) == (bool(never) or kinds[1] == ".")
        program.run()
        for case, y in zip(cases, found, strict=True):
            got = np.empty((n, 40), np.float32)
            device.download(ops.place(y), n, got)
            device.stream.synchronize()
            assert error(got, cases[0].x[:n].astype(np.float64) @ case.w.T) <= 1e-2


ROWS: dict[str, Callable[[np.ndarray], Any]] = {
    "plain": lambda x: x,
    "small": lambda x: x * 1e-7,
    "denormal": lambda x: x * 1e-42,
    "large": lambda x: x * 1e36,
    "nothing": lambda x: x * 0,
    "one that is far out": lambda x: np.where(np.arange(len(x)) == 3, 3e5, x),
    "just what goes": lambda x: np.where(np.arange(len(x)) == 3, 32767.99, x),
}


@pytest.mark.parametrize("k", [4, 7, 1300])
def test_rows_to_halves(card: Card, k: int) -> None:
    plain = np.random.default_rng(k).standard_normal(k).astype(np.float32)
    kinds = {name: change for name, change in ROWS.items() if name != "denormal" or not card.flushes}
    x = np.stack([np.float32(change(plain)) for change in kinds.values()])
    halves, scales = to_halves(card, x)
    back = halves.astype(np.float64) * scales[:, None]
    # 11 bits of each value, and more of a row's largest than float16 has exponents for.
    least = 2.0**-25 * scales[:, None].astype(np.float64)
    np.testing.assert_array_less(np.abs(back - x), 2.0**-11 * np.abs(x.astype(np.float64)) + 1.01 * least)
    assert (least[:, 0] <= 2.0**-20 * np.abs(x).max(1) + 1e-45).all()
    assert (np.frexp(scales)[0] == 0.5).all()  # powers of two
    assert scales[0] == scales[-1] == 1


def test_what_is_no_number_stays_none(card: Card) -> None:
    x = np.ones((3, 8), np.float32)
    x[0, 1], x[1, 2], x[1, 3], x[2, 4] = np.nan, np.inf, 1e30, -np.inf
    halves, scales = to_halves(card, x)
    assert np.isnan(halves[0, 1])
    assert (halves[0] == 1).sum() == 7
    assert halves[1, 2] == np.inf
    assert halves[2, 4] == -np.inf
    assert (scales == 1).all()


def to_halves(card: Card, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values and scales."""
    n, k = x.shape
    y = card.empty((n, halves_bytes(k)), np.uint8)
    card.run("gemm.cu", "to_halves", *grids.to_halves(n), [card.array(x), y, np.int32(k), np.int32(n)])
    rows = card.read(y)
    halves = np.ascontiguousarray(rows[:, : 2 * k]).view(np.float16)
    return halves, np.ascontiguousarray(rows[:, -16:-12]).view(np.float32)[:, 0]


@ONE_CARD
def test_the_emulator_wants_what_a_card_does(card: Card) -> None:
    """No product in a graph; none of memory that is not there."""
    if not isinstance(card.driver, EmulatedDriver):
        pytest.skip("it is a card")
    x, w = card.zeros((9, 16), np.float16), card.zeros((5, 16), np.float16)
    y = card.empty((9, 5), np.float32)
    good = Gemm(x.address, w.address, y.address, 9, 5, 16, 16, 5, 1.0)
    with pytest.raises(KernelError, match="in a graph"):
        card.driver.graph(lambda: card.driver.gemm(good))
    card.driver.gemm(good)
    card.driver.stream.synchronize()
    assert not card.read(y).any()
    card.driver.gemm(Gemm(x.address, w.address, y.address, 9, 5, 16, 17, 5, 1.0))
    with pytest.raises(KernelError, match="x of a matrix product: 304 bytes"):
        card.driver.stream.synchronize()
