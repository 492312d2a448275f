"""What users are told when a card fails, or CUDA cannot be used."""

import builtins
import gc
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ggrun import LLM, GgrunError, UsageError
from ggrun.cli.commands import status_of
from ggrun.devices import open_devices
from ggrun.devices.cuda import found, local
from ggrun.devices.cuda.cupy_driver import CupyDriver
from ggrun.devices.cuda.device import Cuda
from ggrun.devices.cuda.driver import OutOfMemory
from ggrun.devices.cuda.found import Cards, usable_cards
from ggrun.devices.local import everything
from ggrun.gguf import FORMATS, GGUF, Tensor
from ggrun.plan.hardware import Speeds
from tests.cuda import fake_cupy
from tests.cuda.fake_cupy import CUDARuntimeError, FakeCupy, told
from tests.cuda.models import engine, logits
from tests.plans import Plans
from tests.tiny import Tiny

TOKENS = [i * 7 % 36 for i in range(30)]


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Nothing was found before."""
    Cards.found.cache_clear()
    yield
    Cards.found.cache_clear()


@pytest.mark.parametrize("first", [None, KeyError("what is told")])
def test_a_card_that_fails_when_it_is_left(
    first: Exception | None, cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told like any other error, after what was told before."""
    driver = CupyDriver(0)

    @contextmanager
    def device(index: int) -> Iterator[None]:
        yield
        raise CUDARuntimeError(700, "cudaErrorIllegalAddress: an illegal memory access")

    monkeypatch.setattr(cupy.cuda, "Device", device)
    told = "what is told" if first else "cudaErrorIllegalAddress"

    def work() -> None:
        with driver.on("a fill"):
            if first:
                raise first

    with pytest.raises(GgrunError, match=rf"^cuda:0 \(Fake\): a fill: .*{told}"):
        work()


def test_errors_name_the_device_and_what_it_was_for(cupy: FakeCupy, tmp_path: Path) -> None:
    path = Tiny(layers=2).write(tmp_path / "model.gguf")
    driver = CupyDriver(1, "cuda:1")
    line = told(lambda: engine(path, {"cuda:1": Cuda(driver, "cuda:1", 200_000)}))
    assert "cuda:1: no memory for " in line
    cupy._memory = cupy._used + 200_000
    line = told(lambda: engine(path, {"cuda:1": Cuda(driver, "cuda:1")}))
    assert line.startswith("cuda:1: no memory for ")
    assert "bytes of memory: cudaErrorMemoryAllocation" in line
    line = told(lambda: Cuda(CupyDriver(0), "cuda:0").vector(np.zeros(60_000, np.float32), "the weights x"))
    assert line.startswith("cuda:0: no memory for the weights x: cuda:0 (Fake): 240000 bytes of memory: ")
    cupy.failing["RawModule"] = CUDARuntimeError(1, "nvrtc: error: no\nmore")
    line = told(lambda: CupyDriver(0).kernel("rows.cu", "add"))
    assert line == "cuda:0 (Fake): the kernel add: nvrtc: error: no"


LOST = CUDARuntimeError(700, "cudaErrorIllegalAddress: an illegal memory access\nor whatever")
TOLD = (
    "cuda:0 (Fake): cudaErrorIllegalAddress: an illegal memory access: "
    "the card has lost what it had: start again"
)


def lose(cupy: FakeCupy, patch: pytest.MonkeyPatch) -> None:
    """From now on, whatever CUDA is asked for fails."""

    def fail(*_: Any, **__: Any) -> None:
        raise LOST

    for owner in (fake_cupy.Stream, fake_cupy.Event):
        for name in ("synchronize", "record", "wait_event", "launch_host_func"):
            patch.setattr(owner, name, fail, raising=False)
    for name in ("free", "malloc", "memcpyAsync", "memcpy2DAsync", "memsetAsync"):
        patch.setattr(cupy, name, fail)
    patch.setattr(cupy.cuda, "get_elapsed_time", fail)


def test_a_card_that_disappears(cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever that is seen, the line says which, and how to go on; what it had goes without a word."""
    driver = CupyDriver(0)
    stream, memory = driver.stream, [driver.allocate(64) for _ in range(2)]
    event, mark = stream.record(), stream.mark()
    lose(cupy, monkeypatch)
    uses: list[Callable[[], Any]] = [
        stream.synchronize, stream.record, stream.mark, event.block, lambda: stream.wait(event),
        lambda: stream.enqueue(print), lambda: mark.since(mark),
    ]  # fmt: skip
    for use in uses:
        line = told(use)
        assert line.startswith(TOLD)
        assert "-dev" in line
    Cuda(driver, "cuda:0").close()
    del driver, memory
    gc.collect()  # an error in a finalizer would be a warning, and warnings are errors


OUT_OF_MEMORY = CUDARuntimeError(2, "cudaErrorMemoryAllocation: out of memory")


def test_whatever_there_is_no_memory_for(cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events too, which take some of the card's; what is pinned is the host's, where other things help."""
    driver = CupyDriver(0)
    values, there = np.zeros(1000, np.float32), driver.allocate(4000)
    cupy.failing["alloc_pinned_memory"] = OUT_OF_MEMORY
    for use in (
        lambda: driver.upload(there.address, values),
        lambda: driver.download(values, there.address),
        lambda: Cuda(driver, "cuda:0").zeros(100, "the KV cache", on_host=True),
    ):
        line = told(use, OutOfMemory)
        assert (
            "bytes of pinned memory: cudaErrorMemoryAllocation: out of memory: the host's memory is" in line
        )
        assert "-fitt" not in line

    def short(*_: object, **__: object) -> None:
        raise OUT_OF_MEMORY

    monkeypatch.setattr(cupy.cuda, "Event", short)
    line = told(driver.stream.record, OutOfMemory)
    assert line.startswith(
        "cuda:0 (Fake): cudaErrorMemoryAllocation: out of memory: who else has taken memory"
    )


@pytest.mark.parametrize("error", [OUT_OF_MEMORY, LOST])
@pytest.mark.parametrize("failing", ["memcpyAsync", "alloc_pinned_memory"])
def test_weights_that_do_not_come_to_a_card(
    failing: str, error: CUDARuntimeError, cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which ones, in whichever way: at the start, or as they are needed."""
    tensor = Tensor("blk.0.ffn_up.weight", (32, 40), FORMATS["F32"], np.zeros(40 * 32 * 4, np.uint8))
    device = Cuda(CupyDriver(0), "cuda:0.1")
    _, load = device.slot(tensor.nbytes).weight(tensor, (0, 40), (0, 32))

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(cupy.cuda if failing in vars(cupy.cuda) else cupy, failing, fail)
    for use in (load, lambda: device.weight(tensor, (0, 40), (0, 32))):
        line = told(use)
        assert re.match(
            r"cuda:0.1: (no memory for )?the weights blk.0.ffn_up.weight: cuda:0 \(Fake\): ", line
        )
        assert re.search(r" \d+ bytes( of pinned memory)?: cudaError", line)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Failed to find CUDA headers. Please install (e.g., pip install cupy-cuda12x[ctk])"),
        RuntimeError("CuPy failed to load libnvrtc.so.13: OSError: cannot open shared object file\nmore"),
        ImportError("libnvrtc.so.13: cannot open shared object file"),
        FileNotFoundError(2, "No such file or directory", "cuda_fp16.h"),
    ],
)
def test_kernels_that_cannot_be_compiled(error: Exception, cupy: FakeCupy) -> None:
    """The line says what to install, for the CUDA that this CuPy is for."""
    cupy.failing["RawModule"] = error
    line = told(lambda: CupyDriver(0).kernel("rows.cu", "add"))
    assert line.startswith("cuda:0: kernels cannot be compiled: ")
    assert line.endswith(": pip install 'ggrun[cuda13]' brings NVRTC and the headers that it needs")
    assert "cuda12" not in line
    assert str(error).partition(". ")[0].splitlines()[0] in line


def test_a_card_whose_memory_ends_in_a_run(
    cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Which one, what for and what to do; what is begun later works again."""
    devices = open_devices(["cuda:0", "cuda:1"])
    path = Tiny(layers=2).write(tmp_path / "model.gguf")
    split = engine(path, devices, Plans(GGUF(path), ("cuda:0", "cuda:1") * 2)["layer 2"])
    want = logits(split, TOKENS)

    def short(*_: object, **__: object) -> None:
        raise OUT_OF_MEMORY

    with monkeypatch.context() as patch:
        patch.setattr(fake_cupy._Function, "__call__", short)
        line = told(lambda: logits(split, TOKENS))
    assert line.startswith("cuda:0 (Fake): the kernel ")
    assert "out of memory: who else has taken memory of it? -fitt" in line
    np.testing.assert_array_equal(logits(split, TOKENS), want)
    for device in devices.values():
        device.close()


def test_a_card_that_disappears_in_a_run(
    cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, and not what closing the model would say."""
    monkeypatch.setattr(local, "_card_speeds", lambda *_: Speeds(1e9, 1e10, 1e10, 1e9))
    generate = LLM.generate

    def lost(self: LLM, *args: Any, **options: Any) -> Any:
        lose(cupy, monkeypatch)
        return generate(self, *args, **options)

    monkeypatch.setattr(LLM, "generate", lost)
    small = ["-fitt", "0", "-ub", "16", "-c", "64", "-n", "3"]
    assert status_of(["run", "--devices", "cuda:0", *small, "-p", "Once"]) == 1
    gc.collect()
    err = capsys.readouterr().err
    assert err.splitlines()[-1].startswith("ggrun: cuda:0")
    assert "cudaErrorIllegalAddress: an illegal memory access" in err
    assert "internal error" not in err
    assert "Traceback" not in err


def test_there_is_no_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    real = builtins.__import__

    def none(name: str, *rest: Any) -> Any:
        if name == "cupy":
            raise ModuleNotFoundError("No module named 'cupy'", name="cupy")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", none)
    assert "not installed: pip install 'ggrun[cuda13]'" in told(lambda: CupyDriver(0))


def test_cupy_does_not_load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cupy.py").write_text("raise ImportError('libcudart.so.13: cannot open\\nshared object')")
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert told(lambda: CupyDriver(0)).startswith("CuPy cannot be used: libcudart.so.13: cannot open: pip")
    assert usable_cards() == []


def test_cupy_for_cards_of_others(cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cupy, "is_hip", True)
    assert told(lambda: CupyDriver(0)).startswith(
        "this CuPy is built for ROCm, not for CUDA: pip uninstall it"
    )
    assert usable_cards() == []


def no_cupy(cupy: FakeCupy, patch: pytest.MonkeyPatch) -> None:
    patch.setitem(sys.modules, "cupy", None)


def old_driver(cupy: FakeCupy, patch: pytest.MonkeyPatch) -> None:
    cupy.failing["getDeviceCount"] = CUDARuntimeError(35, "too old")


def old_card(cupy: FakeCupy, patch: pytest.MonkeyPatch) -> None:
    cupy._major = 6


def no_card(cupy: FakeCupy, patch: pytest.MonkeyPatch) -> None:
    cupy.failing["getDeviceCount"] = CUDARuntimeError(100, "cudaErrorNoDevice")


@pytest.mark.parametrize("broken", [no_cupy, old_driver, old_card, no_card])
def test_whichever_flag_names_a_card_that_cannot_be_used(
    broken: Callable[[FakeCupy, pytest.MonkeyPatch], None],
    cupy: FakeCupy,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One line says why not, and not that there is no such device."""
    broken(cupy, monkeypatch)

    def said(*args: str) -> tuple[int, str]:
        status = status_of(list(args))
        return status, capsys.readouterr().err.splitlines()[-1]

    want = said("run", "--devices", "cuda:0", "-p", "hi")
    assert "unknown device" not in want[1]
    for flags in (["-dev", "cuda:0"], ["-dev", "CUDA0"], ["-ot", "ffn=cuda:0"]):
        assert said("run", *flags, "-p", "hi") == want
        assert said("plan", *flags) == want
    assert said("bench", "-dev", "cuda:0", "-p", "1", "-n", "0") == want
    monkeypatch.setenv("GGRUN_DEVICE", "cuda:0")
    assert said("run", "-p", "hi") == want


@pytest.mark.parametrize(
    ("status", "driver", "words"),
    [
        (35, False, "no NVIDIA driver is loaded"),
        (35, True, "the driver is for CUDA 12.2, this CuPy needs 13.1: update the driver, or take"),
        (999, True, "CUDA: something else"),
    ],
)
def test_cuda_cannot_be_used(status: int, driver: bool, words: str, cupy: FakeCupy) -> None:
    cupy.failing["getDeviceCount"] = CUDARuntimeError(status, "something else\nand more")
    if not driver:
        cupy.failing["driver"] = CUDARuntimeError(0, "")
    assert words in told(lambda: CupyDriver(0))
    assert usable_cards() == []


def test_cards_that_there_are_not_or_that_are_too_old(
    cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(found, "find_spec", lambda name: object())
    assert "cuda:2: there are 2 CUDA cards" in told(lambda: CupyDriver(2), UsageError)
    assert usable_cards() == [0, 1]
    cupy._major = 6
    assert "compute capability is 6.0, ggrun needs 7.5" in told(lambda: CupyDriver(0))
    assert usable_cards() == []
    cupy._major, cupy.lost = 8, {0}
    lost = "cuda:0: cudaErrorInvalidDevice: the GPU is lost: nvidia-smi must list it"
    assert told(lambda: CupyDriver(0)) == lost
    assert everything() == "cuda:1,cpu"  # it has the number that CUDA gives it
    cupy.failing["getDeviceCount"] = CUDARuntimeError(100, "cudaErrorNoDevice")
    Cards.found.cache_clear()
    assert "there are 0 CUDA cards" in told(lambda: CupyDriver(0), UsageError)
