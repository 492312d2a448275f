"""Devices by their names, with threads, limits and walls."""

import gc
from pathlib import Path

import numpy as np
import psutil
import pytest

from ggrun import LLM, GgrunError, UsageError
from ggrun.arch.config import Config
from ggrun.devices import open_devices
from ggrun.devices.base import Cells, Limits, Rows
from ggrun.devices.cpu import Cpu
from ggrun.devices.emulated import Emulated
from ggrun.devices.names import DeviceName
from ggrun.devices.streams import INLINE, Threaded
from ggrun.engine.engine import Engine
from ggrun.gguf import GGUF
from ggrun.plan import Plan, single
from ggrun.plan.usage import Sizes
from tests.plans import Plans
from tests.tiny import Tiny
from tests.waiting import ended, workers

LIMITS = Limits(tokens=8, outputs=8, sequences=1, pages=1)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("cpu", DeviceName("cpu", None, None)),
        ("cpu:1", DeviceName("cpu", 1, None)),
        ("cpu:0:2GB", DeviceName("cpu", 0, 2 << 30)),
        ("cpu:1.5GiB", DeviceName("cpu", None, 3 << 29)),
        ("emulated:3:512MB", DeviceName("emulated", 3, 512 << 20)),
        ("emulated:0:1000B", DeviceName("emulated", 0, 1000)),
        ("cuda:0.1", DeviceName("cuda", 0, None, 1)),
        ("cuda:12.0:24GB", DeviceName("cuda", 12, 24 << 30, 0)),
    ],
)
def test_names(text: str, name: DeviceName) -> None:
    parsed = DeviceName.parse(text)
    assert parsed == name
    assert text in (parsed.short, f"{parsed.short}:{text.rpartition(':')[2]}")


NOTHING = ["", "gpu:0", "cpu:", "cpu:x", "cpu:1:2", "cpu:0:2XB", "CPU", "cpu:0:-1GB", "cpu\n"]


@pytest.mark.parametrize("text", NOTHING)
def test_names_of_nothing(text: str) -> None:
    with pytest.raises(UsageError, match="unknown device") as caught:
        open_devices([text])
    assert "\n" not in str(caught.value)


def test_two_limits_of_one_device() -> None:
    with pytest.raises(UsageError, match="cpu:0 is there twice"):
        open_devices(["cpu:0:1GB", "cpu:0:2GB"])


def test_threads_are_divided_and_one_device_needs_none_of_its_own() -> None:
    (alone,) = open_devices(["cpu:0"], 3).values()
    assert isinstance(alone, Cpu)
    assert (alone.pool.threads, alone.stream) == (3, INLINE)
    alone.close()
    several = open_devices(["cpu", "cpu:1", "cpu:2", "emulated:0"], 5)
    cpus = [device for device in several.values() if isinstance(device, Cpu)]
    assert sorted(cpu.pool.threads for cpu in cpus) == [1, 2, 2]
    assert all(isinstance(cpu.stream, Threaded) for cpu in cpus)
    for device in several.values():
        device.close()
    few = open_devices(["cpu:0", "cpu:1"], 1)
    assert [device.pool.threads for device in few.values() if isinstance(device, Cpu)] == [1, 1]
    for device in few.values():
        device.close()


def test_devices_that_cannot_all_be_opened() -> None:
    before = workers()
    with pytest.raises(UsageError, match="512"):
        open_devices(["cpu:0", "cpu:1"], 2000)
    gc.collect()
    ended(workers() - before)


# ---------------------------------------------------------------- limits


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return Tiny(layers=3, tied=True).write(tmp_path / "model.gguf")


def needed(path: Path, kind: str) -> int:
    """What a whole model takes of a device, by its own account; it gives all of it back."""
    (device,), model = open_devices([f"{kind}:0:64MB"]).values(), GGUF(path)
    config, before = Config.from_gguf(model), device.available()
    engine = Engine(model, config, single(config, "x"), {"x": device}, Sizes(64, 8))
    device.stream.synchronize()
    taken = before - device.available()
    del engine
    gc.collect()
    assert device.available() == before
    device.close()
    return taken


@pytest.mark.parametrize("kind", ["cpu", "emulated"])
def test_a_limit_is_kept_to_the_byte(kind: str, path: Path) -> None:
    taken = needed(path, kind)
    weights = sum(tensor.nbytes for tensor in GGUF(path).tensors.values())
    cells = 3 * 2 * 64 * 2 * 16 * 2
    assert taken > weights + cells
    with LLM(path, n_ctx=64, n_ubatch=8, devices=f"{kind}:0:{taken}B", fit=False) as llm:
        llm.logits([1, 2, 3])
    for limit in (taken - 1, weights, 60000, 1000):
        message = rf"^{kind}:0: no memory for .*: \d+ bytes, \d+ of {limit} are free"
        with pytest.raises(GgrunError, match=message) as caught:
            LLM(path, n_ctx=64, n_ubatch=8, devices=f"{kind}:0:{limit}B", fit=False)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["cpu", "emulated"])
def test_an_output_that_is_the_embedding_takes_nothing(kind: str, tmp_path: Path) -> None:
    """Nor does a part of it, where the device has all of it to embed."""
    taken = []
    for tied in (True, False):
        model = GGUF(Tiny(tied=tied).write(tmp_path / f"{tied}.gguf"))
        devices = open_devices([f"{kind}:0:64MB", f"{kind}:1:64MB"])
        before = [device.available() for device in devices.values()]
        plan = Plans(model, (*devices, "x", "y"))["row 2"]
        engine = Engine(model, Config.from_gguf(model), plan, devices, Sizes(64, 8))
        taken.append([b - d.available() for b, d in zip(before, devices.values(), strict=True)])
        del engine
        for device in devices.values():
            device.close()
    shares = [4 * 64 * (m.vocab[1] - m.vocab[0]) for m in plan.stages[0].members]
    assert [untied - tied for tied, untied in zip(*taken, strict=True)] == shares


def test_nothing_is_loaded_where_not_all_fits(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last device is too small: not a byte has gone to the first."""
    copied: list[int] = []
    real = np.copyto
    monkeypatch.setattr("ggrun.devices.emulated.np.copyto", lambda *args: copied.append(1) or real(*args))
    plan = Plans(GGUF(path), ("emulated:0", "emulated:1:60KB", "x", "y"))["layer 2"]
    with pytest.raises(GgrunError, match=r"^emulated:1: no memory"):
        LLM(path, n_ctx=64, n_ubatch=8, plan=plan, fit=False)
    assert copied == []


def test_keys_and_values_on_the_host_take_nothing_of_a_device(path: Path) -> None:
    model = GGUF(path)
    plan = single(Config.from_gguf(model), "emulated:0:440KB")
    want = LLM(path, n_ctx=64, n_ubatch=8).logits([1, 2, 3])
    with pytest.raises(GgrunError, match="the KV cache"):
        LLM(path, n_ctx=4096, n_ubatch=8, plan=plan, fit=False)
    on_host = Plan(plan.stages, kv_on_host=True)
    with LLM(path, n_ctx=4096, n_ubatch=8, plan=on_host, fit=False) as llm:
        np.testing.assert_array_equal(llm.logits([1, 2, 3]), want)


# ---------------------------------------------------------------- walls


def test_an_emulated_device_reaches_only_its_own_memory() -> None:
    a, b = Emulated("a"), Emulated("b")
    r, other = a.recorder(LIMITS), b.recorder(LIMITS)
    x, weight = r.input(16), np.ones(16, np.float32)
    r.norm(x, a.vector(weight), 1e-5)
    for wrong in (weight, b.vector(weight)):
        with pytest.raises(TypeError, match="a cannot reach"):
            r.norm(x, wrong, 1e-5)
    with pytest.raises(TypeError, match="cannot reach what lies on b"):
        r.add(other.input(16), x)
    memory = b.zeros(64 * 2 * 16, "cells")
    with pytest.raises(TypeError, match="cannot reach what lies on b"):
        r.store(x, Cells(memory, "f16", 1, 16, 64))
    with pytest.raises(TypeError, match="cannot reach what lies on b"):
        a.copy(other.place(other.input(16)), 1, b, other.place(other.input(16)))
    with pytest.raises(AttributeError):
        _ = a.vector(weight).ctypes
    a.close()
    b.close()


def test_what_an_emulated_device_computes() -> None:
    device = Emulated("a")
    r = device.recorder(LIMITS)
    x, y = r.input(16), r.input(16)
    r.add(x, y)
    program = r.finish()
    values = np.arange(32, dtype=np.float32).reshape(2, 16)
    device.write(r.place(x), values)
    device.write(r.place(y), values)
    r.feed(lambda inputs: inputs.counts.__setitem__(Rows.TOKENS, 2))
    program.run()
    out = np.zeros_like(values)
    device.download(r.place(y), 2, out)
    assert not out.any()  # late
    device.stream.synchronize()
    np.testing.assert_array_equal(out, 2 * values)
    device.close()


def test_a_limit_beyond_the_systems_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    (device,) = open_devices(["cpu:0:4096GB"]).values()
    assert device.available() <= psutil.virtual_memory().total
    device.close()
