"""A CUDA device runs models: against the CPU on the same weights."""

from pathlib import Path

import numpy as np

from ggrun.arch.config import Config
from ggrun.devices.base import Device
from ggrun.devices.cpu import Cpu
from ggrun.devices.cuda.device import Cuda
from ggrun.devices.late import Schedule
from ggrun.engine.engine import Engine, EngineOptions
from ggrun.gguf import GGUF
from ggrun.plan import single
from tests.tiny import Tiny
from tools.cuda_emulator.driver import EmulatedDriver


def engine(path: Path, device: Device, **options: object) -> Engine:
    model = GGUF(path)
    config = Config.from_gguf(model)
    return Engine(
        model, config, single(config, device.name), {device.name: device}, EngineOptions(256, **options)
    )


def emulated(arch: int = 80, seed: int = 0) -> Cuda:
    return Cuda(EmulatedDriver(arch, schedule=Schedule(seed)), "cuda:0")


def test_a_tiny_model(tmp_path: Path) -> None:
    path = Tiny(layers=2).write(tmp_path / "model.gguf")
    tokens = [i % 50 for i in range(20)]
    cpu, cuda = engine(path, Cpu(1, "cpu")), engine(path, emulated())
    want = cpu.decode(tokens, all_logits=True)
    got = cuda.decode(tokens, all_logits=True)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    for token in range(4):
        np.testing.assert_allclose(cuda.decode([token]), cpu.decode([token]), rtol=1e-4, atol=1e-4)
