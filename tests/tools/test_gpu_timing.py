"""How the GPU check times a card, with a CuPy that is the emulator and has events with times."""

import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from shutil import which
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ggrun.devices.cuda.cupy_driver import CupyDriver
from ggrun.devices.cuda.device import Cuda
from ggrun.devices.cuda.found import Cards
from ggrun.devices.cuda.gemm import GemmFrom
from tests.cuda import fake_cupy
from tests.cuda.weights import FORMATS
from tests.tiny import Tiny
from tools import gpu_cases, gpu_ceilings, gpu_kernels, gpu_rig
from tools.cuda_emulator.build import compiler
from tools.gpu_pace import Loaded, pace
from tools.gpu_step import Figure, Step, figures
from tools.gpu_time import Timer, sets_for

pytestmark = pytest.mark.skipif(not which(compiler()), reason=f"the emulator needs {compiler()}")


HOUR = 3600.0


class Event(fake_cupy.Event):
    """With a time, or without one as the driver's."""

    clock = time.perf_counter

    def __init__(self, cuda: "TimedCupy", block: bool = False, disable_timing: bool = False) -> None:
        super().__init__(cuda, True, disable_timing)

    def record(self, stream: Any) -> None:
        assert stream.captured is None
        self.at = type(self).clock()


class TimedCupy(fake_cupy.FakeCupy):
    """With what only the check calls."""

    __version__ = "14.0"
    memcpyDefault, CUDA_R_16BF = 4, 14  # noqa: N815

    def __init__(self) -> None:
        super().__init__()
        self.cuda.Event = partial(Event, self)
        self.cuda.get_elapsed_time = self._elapsed
        self.cuda.nvrtc = SimpleNamespace(getVersion=lambda: (13, 0))

    def _elapsed(self, begin: Event, end: Event) -> float:
        assert begin.timed
        assert end.timed
        return 1e3 * (end.at - begin.at)


@pytest.fixture(autouse=True)
def cupy(monkeypatch: pytest.MonkeyPatch) -> Iterator[TimedCupy]:
    fake = TimedCupy()
    monkeypatch.setitem(sys.modules, "cupy", fake)  # type: ignore[arg-type]
    Cards.found.cache_clear()
    yield fake
    Cards.found.cache_clear()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"_COPIED": 1 << 16, "_MATRIX": 32, "_TILE": 256}.items():
        monkeypatch.setattr(gpu_ceilings, name, value)


class Cublas(ModuleType):
    """gemmEx as the library has it: columns first."""

    CUBLAS_OP_N, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT = 0, 68, -1
    products = 0

    def create(self) -> int:
        return 5

    def destroy(self, handle: int) -> None:
        assert handle == 5

    def gemmEx(self, handle: int, a: int, b: int, *rest: int) -> None:  # noqa: N802
        m, n, k, alpha, _, kind, lda, *_ = rest
        one = np.ctypeslib.as_array((np.ctypeslib.ctypes.c_float * 1).from_address(alpha))
        assert (handle, a, b, m, n, k, kind, lda, one[0]) == (5, 0, 0, 32, 32, 32, 14, 32, 1.0)
        assert rest[-2:] == (68, -1)
        assert len(rest) == 16
        self.products += 1


def ceilings(tmp_path: Path) -> dict[str, Figure]:
    step = Step({"emulated": False, "seconds": HOUR, "known": {}}, tmp_path / "results")
    gpu_ceilings.run(step)
    return {figure.what: figure for figure in figures(tmp_path / "results")}


def libraries(monkeypatch: pytest.MonkeyPatch, cublas: ModuleType) -> None:
    for name in ("cupy_backends", "cupy_backends.cuda", "cupy_backends.cuda.libs"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["cupy_backends.cuda.libs"].cublas = cublas  # type: ignore[attr-defined]


@pytest.mark.usefixtures("small")
def test_ceilings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cublas = Cublas("cublas")
    libraries(monkeypatch, cublas)
    found = ceilings(tmp_path)
    assert [figure.error for figure in found.values()] == [""] * 5
    assert found["card"].more["name"] == "Fake"
    assert found["card"].more["NVRTC"] == "13.0"
    assert found["copy bandwidth"].value
    assert found["upload rate"].how == "cudaMemcpyAsync of 0 MiB of pinned memory, CUDA events"
    assert "cublasGemmEx of bf16" in found["bf16 matrix rate"].how
    assert cublas.products == 8 * 8


@pytest.mark.usefixtures("small")
def test_a_cublas_that_cannot_be_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    libraries(monkeypatch, ModuleType("cublas"))
    found = ceilings(tmp_path)
    assert found["bf16 matrix rate"].value is None
    assert found["bf16 matrix rate"].error
    assert found["download rate"].value


def test_a_replay_has_as_many_passes_as_it_takes_to_be_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    driver, calls = CupyDriver(0), [0, 0]
    monkeypatch.setattr(Event, "clock", lambda: 1e-4 * sum(calls))

    def work(i: int) -> None:
        driver.stream.raw.do(lambda: count(i))

    def count(i: int) -> None:
        calls[i] += 1

    sample = Timer(driver).sample([lambda: work(0), lambda: work(1)])
    assert sample.seconds == pytest.approx([1e-4] * len(sample.seconds))
    assert calls[0] == calls[1] > 20
    assert sample.in_a_stretch >= 8
    assert sample.inputs == 2
    assert sample.more()["us"] == pytest.approx(100)


def test_inputs_take_turns_until_the_cache_has_forgotten_them() -> None:
    driver = CupyDriver(0)
    assert sets_for(1 << 20, driver) == 2
    assert sets_for(1 << 11, driver) == 8
    assert sets_for(0, driver) == 64


def test_every_format_is_timed() -> None:
    assert sorted(gpu_cases.FORMATS_TIMED) == sorted(FORMATS)


def test_kernels_of_a_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_rig, "open_card", lambda _: Cuda(CupyDriver(0), "cuda:0"))
    some = [case for case in gpu_cases.cases(True) if case[0] in ("products of Q4_K", "sampling")]
    monkeypatch.setattr(gpu_kernels, "cases", lambda _: some)
    known = {"copy bandwidth": 2.0, "bf16 matrix rate": 3.0}
    gpu_kernels.run(Step({"emulated": True, "seconds": HOUR, "known": known}, tmp_path / "results"))
    found = figures(tmp_path / "results")
    kinds = [figure.what.split()[0] for figure in found]
    assert kinds == ["matvec", "matvec", "matmul", "cuBLAS", "argmax", "top"]
    for figure in found:
        assert not figure.error
        assert figure.value is not None
        assert figure.share == pytest.approx(figure.value / known[figure.of])


def test_the_switch_over_is_told(cupy: TimedCupy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_kernels, "cases", lambda _: [])
    monkeypatch.setattr(gpu_kernels, "measured_gemm", lambda card: GemmFrom(512, 256, 64))
    step = Step({"emulated": False, "seconds": 100, "known": {}}, tmp_path / "results")
    gpu_kernels.run(step)
    cupy.cuda.library = None
    gpu_kernels.run(step)
    found, none = figures(tmp_path / "results")
    assert found.more == {"quantized": 512, "two_scales": 256, "floats": 64, "piece": 32 << 20}
    assert none.error == "there is no cuBLAS"


def test_a_wrong_result_is_no_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_rig.Rig, "_enqueue", lambda *_: None)  # nothing is launched
    some = [case for case in gpu_cases.cases(True) if case[0] == "products of Q4_K"]
    monkeypatch.setattr(gpu_kernels, "cases", lambda _: some)
    gpu_kernels.run(Step({"emulated": True, "seconds": HOUR, "known": {}}, tmp_path / "results"))
    for figure in figures(tmp_path / "results"):
        assert figure.value is None
        assert figure.error == "the result is wrong: there are outputs that are no numbers"


def test_two_logical_devices_of_a_card(tmp_path: Path) -> None:
    path = Tiny(layers=2).write(tmp_path / "model.gguf")
    for devices in (1, 2):
        loaded = Loaded(path, False, devices, 12)
        found = pace(loaded, 12, 3, 2)
        loaded.close()
        assert loaded.seconds > 0
        assert {name: len(seconds) for name, seconds in found.items()} == {"prompt": 2, "decode": 2}
