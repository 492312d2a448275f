"""The driver by CuPy, with a CuPy that is the emulator; and what users are told when CUDA cannot be used."""

import builtins
import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from ggrun import LLM, GgrunError, Interrupted, UsageError
from ggrun.arch.config import Config
from ggrun.cli.commands import status_of
from ggrun.devices import local, open_devices
from ggrun.devices.cuda import found
from ggrun.devices.cuda.cupy_driver import CupyDriver
from ggrun.devices.cuda.device import Cuda
from ggrun.devices.cuda.found import Cards, usable_cards
from ggrun.devices.cuda.gemm import GemmFrom
from ggrun.devices.cuda.staging import pieces
from ggrun.engine.engine import Engine
from ggrun.gguf import FORMATS, GGUF, Tensor
from ggrun.plan.hardware import Speeds
from ggrun.plan.usage import Sizes
from tests.cuda import fake_cupy
from tests.cuda.fake_cupy import Cublas, CUDARuntimeError, FakeCupy
from tests.cuda.models import engine, logits
from tests.engine.test_outputs import Shares, check_several
from tests.engine.test_peer import distance
from tests.offloads import beside_the_cpu, offloads_of
from tests.plans import Plans
from tests.tiny import Tiny

TOKENS = [i * 7 % 36 for i in range(30)]


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    Cards.found.cache_clear()
    yield
    Cards.found.cache_clear()


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> FakeCupy:
    fake = FakeCupy()
    monkeypatch.setitem(sys.modules, "cupy", fake)  # type: ignore[arg-type]
    return fake


@pytest.mark.parametrize("p2p", ["on", "off"])
@pytest.mark.parametrize("kind", ["none", "layer 2", "row 2", "everything"])
def test_models(kind: str, p2p: str, cupy: FakeCupy, tmp_path: Path) -> None:
    path = Tiny(layers=3).write(tmp_path / "model.gguf")
    want = logits(engine(path, open_devices(["cpu"], 2)), TOKENS)
    free = cupy.memGetInfo()
    devices = open_devices(["cuda:0", "cuda:1", "cpu", "cpu:1"], 2, p2p)
    plan = Plans(GGUF(path), ("cuda:0", "cuda:1", "cpu", "cpu:1"))[kind]
    split = engine(path, devices, plan, n_ubatch=8, all_reduce="copy")
    for size in (1000, 1):
        assert distance(logits(split, TOKENS, size), want) <= 1e-6
    assert bool(cupy.copies) == (p2p == "on" and kind != "none")
    for device in devices.values():
        device.close()
    del split, devices, device
    gc.collect()
    assert cupy.memGetInfo() == free


def test_the_best_logits(cupy: FakeCupy) -> None:
    check_several(Shares(list(open_devices(["cuda:0", "cuda:1"]).values()), [0, 900, 3000]))


@pytest.mark.parametrize("mode", ["layer", "row"])
def test_logical_devices_of_one_card(
    mode: str, cupy: FakeCupy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has a limit of its own, and the first card's kernels and memory."""
    monkeypatch.setattr(local, "_card_speeds", lambda *_: Speeds(1e9, 1e10, 1e10, 1e9))
    path = Tiny(layers=3).write(tmp_path / "model.gguf")
    with LLM(path, n_ctx=64, devices="cpu", threads=1) as cpu:
        want = cpu.logits(TOKENS)
    options: dict[str, Any] = {"split_mode": mode, "tensor_split": (1.0, 1.0), "n_ctx": 64}
    told: list[tuple[str, int, int]] = []

    def progress(*what: Any) -> None:
        told.append(what)

    with LLM(path, devices="cuda:0:96MB,cuda:0:96MB", progress=progress, metered=True, **options) as llm:
        cards = {name: device for name, device in llm._placed.devices.items() if isinstance(device, Cuda)}
        assert cards.keys() == {"cuda:0.0:96MB", "cuda:0.1:96MB"}
        for card in cards.values():
            assert isinstance(card.driver, CupyDriver)
            assert card.driver.index == 0
            assert 0 < card._budget.used < 96 << 20
        assert distance(llm.logits(TOKENS), want) <= 1e-6


def test_large_products_are_those_of_cublas(cupy: FakeCupy, tmp_path: Path) -> None:
    model = Tiny(arch="qwen2", layers=2, biases=True, format=GGMLQuantizationType.Q8_0)
    path = model.write(tmp_path / "model.gguf")
    want, blas = logits(engine(path, open_devices(["cpu"], 2)), TOKENS), cupy.cuda.cublas
    device = Cuda(CupyDriver(0), "cuda:0", gemm_from=GemmFrom(quantized=9))
    card = engine(path, {"cuda:0": device})
    assert blas.handles == 1
    assert distance(logits(card, TOKENS), want) <= 1e-4
    # Each layer has seven matrices; that of the output is another.
    assert blas.products == 2 * 7 + 1
    assert distance(logits(card, TOKENS, 8), want) <= 1e-4
    assert blas.products == 2 * 7 + 1
    blas.failing = True
    line = told(lambda: logits(card, TOKENS))
    assert line == "cuda:0 (Fake): a matrix product: CUBLAS_STATUS_EXECUTION_FAILED"
    device.close()
    assert blas.handles == 0


@pytest.mark.parametrize("missing", [True, False])
def test_without_cublas_products_are_our_own(missing: bool, cupy: FakeCupy, tmp_path: Path) -> None:
    """It is not installed, or does not work."""
    path = Tiny(layers=2, format=GGMLQuantizationType.Q8_0).write(tmp_path / "model.gguf")
    found = []
    for gemm_from in (None, GemmFrom(9, 9, 9)):
        cupy.cuda.library.failing = True
        if missing:
            cupy.cuda.library = None
        device = Cuda(CupyDriver(0), "cuda:0", gemm_from=gemm_from)
        found.append(logits(engine(path, {"cuda:0": device}), TOKENS))
        assert device.gemm_from == GemmFrom()
        device.close()
        cupy.cuda.library = Cublas(cupy)
    np.testing.assert_array_equal(*found)


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


def test_uploads_go_in_pieces_through_pinned_memory(cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch) -> None:
    from ggrun.devices.cuda import staging

    monkeypatch.setattr(staging, "_SIZE", 1000)
    driver = CupyDriver(0)
    values = np.random.default_rng(1).standard_normal((7, 11, 13)).astype(np.float32)[:, 2:9, 1:12]
    there = driver.allocate(values.nbytes)
    driver.upload(there.address, values)
    for shape in ((77, 7), (7, 7, 11), (539,)):
        back = np.empty(shape, np.float32)
        driver.download(back, there.address)
        np.testing.assert_array_equal(back.ravel(), values.ravel())


def test_weights_that_come_while_the_card_computes(cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the second stream, through buffers of its own."""
    from ggrun.devices.cuda import staging

    monkeypatch.setattr(staging, "_SIZE", 1000)
    values = np.random.default_rng(1).standard_normal((40, 32)).astype(np.float32)
    tensor = Tensor("blk.0.ffn_up.weight", (32, 40), FORMATS["F32"], values.view(np.uint8).reshape(-1))
    device = open_devices(["cuda:0"])["cuda:0"]
    assert isinstance(device, Cuda)
    slot = device.slot(2 * values.nbytes)
    driver, held = device.driver, device.weight(tensor, (0, 40), (0, 32))
    main, cupy.sent = set(cupy.sent), []
    for _ in range(2):
        slot.begin()
        weight, load = slot.weight(tensor, (8, 40), (0, 32))
        load()
        assert len(cupy.sent) > 4  # pieces
        assert set(cupy.sent) == {driver.transfers.raw.ptr}  # type: ignore[attr-defined]
    assert main == {driver.stream.raw.ptr}  # type: ignore[attr-defined]
    back = np.empty((32, 32), np.float32)
    driver.download(back, weight.address)
    np.testing.assert_array_equal(back, values[8:])
    assert held.row_bytes == weight.row_bytes
    device.interrupt()
    with pytest.raises(Interrupted):
        load()
    device.close()


def test_feed_forwards_of_the_cpu(cupy: FakeCupy, tmp_path: Path) -> None:
    path = Tiny(layers=3).write(tmp_path / "model.gguf")
    want = logits(engine(path, open_devices(["cpu"], 2)), TOKENS)
    model, devices = GGUF(path), open_devices(["cpu", "cuda:0"], 2)
    config = Config.from_gguf(model)
    plan = beside_the_cpu(config, ["cuda:0"])
    both = Engine(model, config, plan, devices, Sizes(64, 16), offloads=offloads_of(plan))
    assert distance(logits(both, TOKENS), want) <= 1e-6
    card = devices["cuda:0"]
    assert isinstance(card, Cuda)
    assert card.driver.transfers.raw.ptr in cupy.sent  # type: ignore[attr-defined]
    for device in devices.values():
        device.close()


def test_what_is_written_has_come(cupy: FakeCupy) -> None:
    """Not only left the host: the card's stream may read it next, and waits for nothing."""
    driver, values, back = CupyDriver(0), np.arange(1000, dtype=np.uint8), np.empty(1000, np.uint8)
    there = driver.allocate(1000)
    driver.write(there.address, values)
    driver.download(back, there.address)
    np.testing.assert_array_equal(back, values)


def test_peer_access(cupy: FakeCupy) -> None:
    one, other, twin = CupyDriver(0), CupyDriver(1), CupyDriver(0)
    assert one.identity == twin.identity != other.identity
    for _ in range(2):  # it may be enabled already
        one.reach(other)
        one.reach(twin)  # the same card: nothing to enable
    assert cupy.reached == {(0, 1)}
    cupy._peers = False
    line = told(lambda: other.reach(one))
    assert line == "cuda:1: this machine has no peer access to cuda:0: leave out --p2p on"
    cupy._peers, cupy.failing["deviceEnablePeerAccess"] = True, CUDARuntimeError(711, "too many peers")
    assert told(lambda: other.reach(one)) == "cuda:1 (Fake): peer access: too many peers"


def test_two_devices_on_one_card_copy_within_it(cupy: FakeCupy) -> None:
    one, twin = CupyDriver(0), CupyDriver(0)
    values, back = np.arange(1000, dtype=np.uint8), np.empty(1000, np.uint8)
    source, target = one.allocate(1000), twin.allocate(1000)
    one.upload(source.address, values)
    one.copy(target.address, source.address, 1000, twin)
    twin.download(back, target.address)
    np.testing.assert_array_equal(back, values)
    assert cupy.copies == []


def test_pieces() -> None:
    data = np.arange(5 * 6 * 7, dtype=np.int16).reshape(5, 6, 7)
    for size in (2, 14, 30, 84, 200, 1000):
        parts = list(pieces(data, size))
        assert all(part.nbytes <= size for part in parts)
        np.testing.assert_array_equal(np.concatenate([part.ravel() for part in parts]), data.ravel())


def told(work: Callable[[], Any], kind: type[GgrunError] = GgrunError) -> str:
    """The one line that a user sees."""
    with pytest.raises(kind) as error:
        work()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_errors_name_the_device_and_what_it_was_for(cupy: FakeCupy, tmp_path: Path) -> None:
    path = Tiny(layers=2).write(tmp_path / "model.gguf")
    driver = CupyDriver(1, "cuda:1")
    line = told(lambda: engine(path, {"cuda:1": Cuda(driver, "cuda:1", 200_000)}))
    assert "cuda:1: no memory for " in line
    cupy._memory = cupy._used + 200_000
    line = told(lambda: engine(path, {"cuda:1": Cuda(driver, "cuda:1")}))
    assert line.startswith("cuda:1: no memory for ")
    assert "bytes of memory: cudaErrorMemoryAllocation" in line
    cupy.failing["RawModule"] = CUDARuntimeError(1, "nvrtc: error: no\nmore")
    line = told(lambda: CupyDriver(0).kernel("rows.cu", "add"))
    assert line == "cuda:0 (Fake): the kernel add: nvrtc: error: no"


LOST = CUDARuntimeError(700, "cudaErrorIllegalAddress: an illegal memory access\nor whatever")
TOLD = "cuda:0: cudaErrorIllegalAddress: an illegal memory access: the card has lost what it had: start again"


def lose(cupy: FakeCupy, patch: pytest.MonkeyPatch) -> None:
    """From now on, whatever CUDA is asked for fails."""

    def fail(*_: Any, **__: Any) -> None:
        raise LOST

    for owner in (fake_cupy._Stream, fake_cupy._Event):
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


def test_a_card_whose_memory_ends_in_a_run(
    cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Which one, what for and what to do; what is begun later works again."""
    devices = open_devices(["cuda:0", "cuda:1"])
    path = Tiny(layers=2).write(tmp_path / "model.gguf")
    split = engine(path, devices, Plans(GGUF(path), ("cuda:0", "cuda:1") * 2)["layer 2"])
    want = logits(split, TOKENS)

    def short(*_: object, **__: object) -> None:
        raise CUDARuntimeError(2, "cudaErrorMemoryAllocation: out of memory")

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
    assert local.everything() == "cuda:1,cpu"  # it has the number that CUDA gives it
    cupy.failing["getDeviceCount"] = CUDARuntimeError(100, "cudaErrorNoDevice")
    Cards.found.cache_clear()
    assert "there are 0 CUDA cards" in told(lambda: CupyDriver(0), UsageError)
