"""Kernels in graphs, launched before those in front of them have ended: what the driver library is given."""

import ctypes as c
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from ggrun import GgrunError
from ggrun.devices.cuda import dependent
from ggrun.devices.cuda.cupy_driver import CupyDriver
from ggrun.devices.cuda.dependent import DependentLaunch, LaunchAttribute, LaunchConfig
from ggrun.devices.cuda.device import Cuda
from ggrun.devices.cuda.found import Cards
from tests.cuda.fake_cupy import FakeCupy
from tests.cuda.models import engine
from tests.tiny import Tiny

TYPES = {"P": c.c_uint64, "i": c.c_int32, "q": c.c_int64, "f": c.c_float}
SCALARS = {"i": np.int32, "q": np.int64, "f": np.float32}


class Library:
    """libcuda: cuLaunchKernelEx reads what it is given as the driver does, by the kernel's own signature."""

    def __init__(self, cupy: FakeCupy) -> None:
        self._cupy, self.launched, self.status = cupy, 0, 0

    def cuLaunchKernelEx(self, config: Any, function: Any, pointers: Any, extra: Any) -> int:  # noqa: N802
        at = c.cast(config, c.POINTER(LaunchConfig)).contents
        attribute = c.cast(at.attributes, c.POINTER(LaunchAttribute)).contents
        assert (at.count, attribute.id, attribute.allowed, extra) == (1, 6, 1, None)
        assert at.stream == self._cupy.streams[-1].ptr
        kernel = self._cupy.functions[function.value]
        args = []
        for letter, pointer in zip(kernel.signature, pointers, strict=True):
            value = TYPES[letter].from_address(pointer).value
            args.append(SCALARS[letter](value) if letter in SCALARS else value)
        kernel(tuple(at.grid), tuple(at.block), tuple(args), at.shared)
        self.launched += 1
        return self.status


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> FakeCupy:
    """Of Hopper cards, and a driver that is new enough."""
    fake = FakeCupy(major=9)
    fake.driver_version = 12030
    monkeypatch.setitem(sys.modules, "cupy", fake)
    Cards.found.cache_clear()
    yield fake
    Cards.found.cache_clear()


@pytest.fixture
def library(cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch) -> Library:
    library = Library(cupy)
    monkeypatch.setattr(dependent, "driver_library", lambda: library)
    return library


def tokens(path: Path, count: int) -> np.ndarray:
    """Logits of tokens one by one: from the third one on, a graph is replayed."""
    device = Cuda(CupyDriver(0), "cuda:0")
    runs = engine(path, {"cuda:0": device})
    found = np.concatenate([runs.decode([token], all_logits=True) for token in range(3, 3 + count)])
    device.close()
    return found


def test_graphs_have_the_same_launches(library: Library, cupy: FakeCupy, tmp_path: Path) -> None:
    path = Tiny(layers=2, format=GGMLQuantizationType.Q8_0).write(tmp_path / "model.gguf")
    by_library = tokens(path, 4)
    launched, cupy.driver_version = library.launched, 12020
    np.testing.assert_array_equal(tokens(path, 4), by_library)
    assert launched > 20
    assert library.launched == launched, "the older driver was asked for it"


def test_what_knows_nothing_of_it(library: Library, monkeypatch: pytest.MonkeyPatch, cupy: FakeCupy) -> None:
    assert DependentLaunch.of(cupy, 90)
    assert not DependentLaunch.of(cupy, 89)
    monkeypatch.setattr(dependent, "driver_library", lambda: SimpleNamespace())  # of before CUDA 11.8
    assert not DependentLaunch.of(cupy, 90)
    monkeypatch.setattr(dependent, "driver_library", lambda: c.CDLL("there is none.so.1"))
    assert not DependentLaunch.of(cupy, 90)


def test_an_error_is_the_cards(library: Library, tmp_path: Path) -> None:
    path = Tiny(layers=1, format=GGMLQuantizationType.Q8_0).write(tmp_path / "model.gguf")
    library.status = 719
    with pytest.raises(GgrunError, match="cuda:0"):
        tokens(path, 4)
