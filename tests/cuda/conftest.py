"""`card`: runs kernels of kernels/cuda on the emulator, or on a real card with --device cuda.

The emulator's cards differ in architecture and in the order of threads, and a test runs on each of CARDS.
One that takes long names fewer: @pytest.mark.parametrize("card", ["800-random"], indirect=True), or has one
for each format: @pytest.mark.parametrize(("card", "name"), diagonal(TURING, FORMATS), indirect=["card"]).
"""

import sys
from collections.abc import Iterator, Sequence
from shutil import which
from typing import Any

import numpy as np
import pytest
from numpy.typing import ArrayLike, DTypeLike, NDArray

from ggrun.devices.cuda.driver import Driver
from ggrun.devices.cuda.found import Cards
from tests.cuda import models
from tests.cuda.fake_cupy import FakeCupy
from tools.cuda_emulator.build import compiler
from tools.cuda_emulator.driver import EmulatedDriver

CARDS = ("750-forward", "800-forward", "800-reverse", "800-random")
_ORDERS = {"forward": 0, "reverse": 1, "random": 7}
TURING, AMPERE = ([f"{arch}-{order}" for order in _ORDERS] for arch in (750, 800))
"""Every card there is. The two architectures differ in what their tensor cores take."""


class OnCard:
    """An array of a card."""

    def __init__(self, driver: Driver, shape: tuple[int, ...], dtype: DTypeLike) -> None:
        self.shape, self.dtype = shape, np.dtype(dtype)
        self.memory = driver.allocate(int(np.prod(shape)) * self.dtype.itemsize)

    @property
    def address(self) -> int:
        return self.memory.address


class Card:
    """A driver, with what tests need around it: everything is done when a method returns."""

    def __init__(self, driver: Driver) -> None:
        self.driver, self.arch = driver, driver.arch * 10
        self.flushes = not isinstance(driver, EmulatedDriver)
        """Whether numbers too small for a normal float are zeros: CuPy compiles with -ftz=true."""
        self._arrays: list[OnCard] = []

    def array(self, values: ArrayLike) -> OnCard:
        """A copy of a numpy array on the card."""
        values = np.ascontiguousarray(values)
        there = self.empty(values.shape, values.dtype)
        self.driver.upload(there.address, values)
        self.driver.stream.synchronize()
        return there

    def zeros(self, shape: int | tuple[int, ...], dtype: DTypeLike) -> OnCard:
        return self.array(np.zeros(shape, dtype))

    def empty(self, shape: int | tuple[int, ...], dtype: DTypeLike) -> OnCard:
        """With all bits ones in it: NaN or -1."""
        there = OnCard(self.driver, (shape,) if isinstance(shape, int) else shape, dtype)
        self._arrays.append(there)
        self.driver.fill(there.address, 0xFF, there.memory.nbytes)
        return there

    def run(
        self,
        file: str,
        name: str,
        grid: int | tuple[int, ...],
        block: int | tuple[int, ...],
        args: Sequence[Any],
        shared: int = 0,
        **defines: str | int,
    ) -> None:
        """Run a kernel. args: arrays of the card, addresses, and numpy scalars."""
        kernel = self.driver.kernel(file, name, **defines)
        values = [arg.address if isinstance(arg, OnCard) else arg for arg in args]
        grid, block = ((size,) if isinstance(size, int) else size for size in (grid, block))
        self.driver.launch(kernel, grid, block, values, shared)
        self.driver.stream.synchronize()

    def read(self, there: OnCard) -> NDArray[Any]:
        """A copy on the host."""
        here = np.empty(there.shape, there.dtype)
        self.driver.download(here, there.address)
        self.driver.stream.synchronize()
        return here

    def check(self) -> None:
        """Fails if a kernel wrote past the end of an array."""
        for there in self._arrays:
            getattr(there.memory, "free", lambda: None)()


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("device") == "cuda":
        models.REAL.append(True)


def pytest_itemcollected(item: pytest.Item) -> None:
    """What has a card runs on a real one with --device cuda; models on cards say so themselves."""
    if "card" in getattr(item, "fixturenames", ()):
        item.add_marker("cuda")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    chosen = any("card" in mark.args[0] for mark in metafunc.definition.iter_markers("parametrize"))
    if "card" in metafunc.fixturenames and not chosen:
        cards = CARDS if metafunc.config.getoption("device") == "emulator" else ("cuda",)
        metafunc.parametrize("card", cards, indirect=True)


@pytest.fixture(autouse=True)
def _compiler(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("device") == "emulator" and not which(compiler()):
        pytest.skip(f"the emulator needs {compiler()}")


@pytest.fixture
def card(request: pytest.FixtureRequest) -> Iterator[Card]:
    if request.config.getoption("device") == "cuda":
        from ggrun.devices.cuda.cupy_driver import CupyDriver

        yield Card(CupyDriver(0))
        return
    arch, order = request.param.split("-")
    emulated = Card(EmulatedDriver(int(arch) // 10, order=_ORDERS[order]))
    yield emulated
    emulated.check()


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCupy]:
    """The module, which is the emulator; nothing was found before."""
    fake = FakeCupy()
    monkeypatch.setitem(sys.modules, "cupy", fake)  # type: ignore[arg-type]
    Cards.found.cache_clear()
    yield fake
    Cards.found.cache_clear()
