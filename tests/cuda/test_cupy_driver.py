"""The driver by CuPy, with a CuPy that is the emulator."""

import gc
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from ggrun import LLM, Interrupted
from ggrun.arch.config import Config
from ggrun.devices import open_devices
from ggrun.devices.cuda import local
from ggrun.devices.cuda.cupy_driver import CupyDriver
from ggrun.devices.cuda.device import Cuda
from ggrun.devices.cuda.gemm import GemmFrom
from ggrun.devices.cuda.staging import pieces
from ggrun.engine.engine import Engine
from ggrun.gguf import FORMATS, GGUF, Tensor
from ggrun.plan.hardware import Speeds
from ggrun.plan.usage import Sizes
from tests.cuda.fake_cupy import Cublas, CUDARuntimeError, FakeCupy, told
from tests.cuda.models import engine, logits
from tests.engine.test_outputs import Shares, check_several
from tests.engine.test_peer import distance
from tests.offloads import beside_the_cpu, offloads_of
from tests.plans import Plans
from tests.tiny import Tiny

TOKENS = [i * 7 % 36 for i in range(30)]


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


@pytest.mark.parametrize("cores", [1, 3])
def test_uploads_go_in_pieces_through_pinned_memory(
    cores: int, cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which several threads fill, where there are cores for them."""
    from ggrun.devices.cuda import staging

    monkeypatch.setattr(staging, "_SIZE", 1000)
    monkeypatch.setattr(staging, "_ALONE", 100)
    monkeypatch.setattr(staging, "usable_cores", lambda: cores)
    driver, before = CupyDriver(0), set(threading.enumerate())
    for experts in (1, 7):
        values = np.random.default_rng(1).standard_normal((experts, 11, 13)).astype(np.float32)[:, 2:9, 1:12]
        there = driver.allocate(values.nbytes)
        driver.upload(there.address, values)
        assert (cores > 1) == any("ggrun-upload" in t.name for t in set(threading.enumerate()) - before)
        for shape in ((77, experts), (experts, 7, 11), (77 * experts,)):
            back = np.empty(shape, np.float32)
            driver.download(back, there.address)
            driver.stream.synchronize()
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
    driver.stream.synchronize()
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
    driver.stream.synchronize()
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
    twin.stream.synchronize()
    np.testing.assert_array_equal(back, values)
    assert cupy.copies == []


def test_pieces() -> None:
    data = np.arange(5 * 6 * 7, dtype=np.int16).reshape(5, 6, 7)
    for size in (2, 14, 30, 84, 200, 1000):
        parts = list(pieces(data, size))
        assert all(part.nbytes <= size for part in parts)
        np.testing.assert_array_equal(np.concatenate([part.ravel() for part in parts]), data.ravel())
