"""Kernels in graphs, launched before those in front of them have ended: what the driver library is given."""

import ctypes as c
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from ggrun.devices.cuda import dependent
from ggrun.devices.cuda.cupy_driver import CupyDriver
from ggrun.devices.cuda.dependent import DependentLaunch, LaunchAttribute, LaunchConfig
from ggrun.devices.cuda.device import Cuda
from ggrun.devices.cuda.found import Cards
from ggrun.kernels import cuda_source
from tests.cuda.fake_cupy import CUDARuntimeError, FakeCupy
from tests.cuda.models import engine
from tests.engine.test_plans import MODELS
from tests.tiny import Tiny

TYPES = {"P": c.c_uint64, "i": c.c_int32, "q": c.c_int64, "f": c.c_float}
SCALARS = {"i": np.int32, "q": np.int64, "f": np.float32}


class Library:
    """libcuda: cuLaunchKernelEx reads what it is given as the driver does, by the kernel's own signature."""

    def __init__(self, cupy: FakeCupy) -> None:
        self._cupy, self.launched, self.status = cupy, 0, 0
        self.names = set[str]()

    def cuLaunchKernelEx(self, config: Any, function: Any, pointers: Any, extra: Any) -> int:  # noqa: N802
        at = c.cast(config, c.POINTER(LaunchConfig)).contents
        attribute = c.cast(at.attributes, c.POINTER(LaunchAttribute)).contents
        assert (at.count, attribute.id, attribute.allowed, extra) == (1, 6, 1, None)
        assert at.stream == self._cupy.streams[-1].ptr
        assert self._cupy.streams[-1].last == "kernel", "nothing else can end early"
        kernel = self._cupy.functions[function.value]
        args = []
        for letter, pointer in zip(kernel.signature, pointers, strict=True):
            value = TYPES[letter].from_address(pointer).value
            args.append(SCALARS[letter](value) if letter in SCALARS else value)
        self.names.add(kernel.name)
        if not self.status:
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


def test_the_drivers_structures() -> None:
    """As cuda.h has them on 64 bits."""
    assert (c.sizeof(LaunchAttribute), LaunchAttribute.allowed.offset) == (72, 8)
    fields = [getattr(LaunchConfig, name).offset for name in ("shared", "stream", "attributes", "count")]
    assert (c.sizeof(LaunchConfig), fields) == (56, [24, 32, 40, 48])


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


def test_a_driver_that_refuses_them(library: Library, tmp_path: Path) -> None:
    """Then graphs go without."""
    path = Tiny(layers=1, format=GGMLQuantizationType.Q8_0).write(tmp_path / "model.gguf")
    right = tokens(path, 4)
    library.status = 719
    np.testing.assert_array_equal(tokens(path, 4), right)


def test_a_recording_that_fails(library: Library, cupy: FakeCupy) -> None:
    """The first error is told, and the stream takes work again."""
    driver = CupyDriver(0)

    def record() -> None:
        cupy.failing["end_capture"] = CUDARuntimeError(901, "cudaErrorStreamCaptureInvalidated")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        driver.graph(record)
    cupy.failing.clear()
    memory = driver.allocate(16)
    driver.graph(lambda: driver.fill(memory.address, 7, 16)).launch()
    found = np.empty(16, np.uint8)
    driver.download(found, memory.address)
    driver.stream.synchronize()
    assert (found == 7).all()


BETWEEN: dict[str, Callable[[CupyDriver, CupyDriver, int, int], None]] = {
    "nothing": lambda card, other, here, there: None,
    "a fill": lambda card, other, here, there: card.fill(here, 0, 64),
    "a copy": lambda card, other, here, there: card.copy(here, here + 32, 32),
    "a copy to another card": lambda card, other, here, there: card.copy(there, here, 64, other),
    "an event": lambda card, other, here, there: card.stream.wait(card.stream.record()),
}


@pytest.mark.parametrize("what", BETWEEN)
def test_only_what_is_right_behind_a_kernel_begins_early(what: str, library: Library) -> None:
    card, other = CupyDriver(0), CupyDriver(1)
    here, there = card.allocate(64), other.allocate(64)
    card.reach(other)
    add = card.kernel("rows.cu", "add")

    def record() -> None:
        card.launch(add, (1,), (32,), (here.address, here.address, np.int64(4)))
        BETWEEN[what](card, other, here.address, there.address)
        card.launch(add, (1,), (32,), (here.address, here.address, np.int64(4)))

    card.graph(record)
    assert library.launched == (what == "nothing")


def test_graphs_have_no_kernels_for_many_tokens(library: Library, tmp_path: Path) -> None:
    """Those read what others write in ways that may come before they have waited: see ptx.cuh."""
    for model in (Tiny(layers=1, format=GGMLQuantizationType.Q8_0), MODELS["experts"]):
        tokens(model.write(tmp_path / "model.gguf"), 4)
    assert library.names
    assert not [name for name in library.names if name.startswith(("matmul", "sum_splits", "to_halves"))]


BODY = re.compile(r'extern "C" __global__[^{;]*?(\w+)\([^{]*\{(.*?)\n\}', re.DOTALL)
EARLY = {  # kernels that ask for what no kernel writes before they wait, and in what function they do
    "rms_norm_quantize": "", "attention_decode": "",
    "matvec": "product", "matvec_merged": "product", "matvec_swiglu": "two_products",
}  # fmt: skip


@pytest.mark.parametrize("path", sorted(Path(cuda_source("")).glob("*.cu")), ids=lambda path: path.name)
def test_every_block_waits(path: Path) -> None:
    """At its beginning, or before it leaves and where it goes on."""
    text = re.sub(r"#define DECODE_KERNEL.*\n", "", path.read_text())
    text = text.replace("DECODE_KERNEL\n", 'extern "C" __global__ void ')
    text = re.sub(r"__launch_bounds__\([^()]*\)", "", text)
    assert len(BODY.findall(text)) == text.count('extern "C" __global__')
    for name, body in BODY.findall(text):
        if name not in EARLY:
            assert body.split(";")[0].strip() == "wait_for_previous()", name
            continue
        waits = f"{EARLY[name]}(" if EARLY[name] else "\n    wait_for_previous();"
        assert waits in body, name
        assert "return;" not in body[: body.index(waits)], name


def test_products_wait() -> None:
    text = (Path(cuda_source("")) / "dots.cuh").read_text()
    for name in ("dot_quantized", "dot_floats", "dot_single"):
        body = text[text.index(f"DEVICE void {name}(") :]
        assert "    wait_for_previous();\n    for (" in body[: body.index("\n}")], name
