"""-sm auto: the mode that is faster for the first layers, measured once; none that does not fit."""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ggrun import LLM, GgrunError, Interrupted
from ggrun.arch.config import Config
from ggrun.devices.base import Device
from ggrun.devices.best import TopK
from ggrun.devices.cpu import Cpu
from ggrun.engine import engine, split_trial
from ggrun.engine.engine import Engine
from ggrun.engine.outputs import Outputs
from ggrun.engine.split_trial import with_mode
from ggrun.gguf import GGUF, FirstLayers
from ggrun.plan import single
from ggrun.plan.facts import ModelFacts
from ggrun.plan.hardware import DeviceInfo
from ggrun.plan.options import PlanOptions
from ggrun.plan.planned import Planned
from ggrun.plan.planner import make_plan
from ggrun.plan.report import DoesNotFit, require_fit
from ggrun.plan.usage import Sizes
from tests.kept import another_process, nothing_kept
from tests.tiny import Tiny

AUTO = PlanOptions(split_mode="auto", tensor_split=(1, 1), n_ctx=64)
TWO = "cpu:0:1GB,cpu:1:1GB"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    nothing_kept(monkeypatch, tmp_path)
    return tmp_path / "hardware"


@pytest.fixture
def model(tmp_path: Path) -> GGUF:
    return GGUF(Tiny(layers=6, context=512).write(tmp_path / "model.gguf"))


class Machine:
    """Two cards that take as long as `seconds` says for a mode; what was tried on them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, memory: int = 1 << 30, **seconds: float) -> None:
        self.tried: list[str] = []
        self.devices = [
            DeviceInfo(f"emulated:{i}", memory, memory, 1e10, 1e12, 1e10, shared=False) for i in range(2)
        ]

        def measured(model: GGUF, planned: Planned, *_: object) -> float:
            self.tried.append(planned.options.split_mode)
            return seconds[planned.options.split_mode]

        monkeypatch.setattr(split_trial, "_seconds", measured)

    def make(self, facts: ModelFacts, options: PlanOptions) -> Planned:
        planned = make_plan(facts, self.devices, options)
        require_fit(planned)
        return planned

    def mode(self, model: GGUF, options: PlanOptions = AUTO) -> str:
        def opened(names: Iterable[str]) -> dict[str, Device]:
            raise AssertionError(names)

        return with_mode(model, options, self.make, opened).split_mode


@pytest.mark.parametrize("seconds", [{"layer": 1.0, "row": 2.0}, {"layer": 2.0, "row": 1.0}])
def test_the_faster_one_is_measured_once(
    seconds: dict[str, float], model: GGUF, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    machine, best = Machine(monkeypatch, **seconds), min(seconds, key=lambda mode: seconds[mode])
    assert machine.mode(model) == machine.mode(model) == best
    assert machine.tried == ["layer", "row"]
    machine.mode(model, replace(AUTO, cache_type_k="q8_0"))  # another setting is measured by itself
    assert len(machine.tried) == 4
    (one, _) = cache.iterdir()
    for n, text in enumerate(("", "{}", '{"mode": "sideways"}', "[]", "[" * 100_000), 1):
        one.write_text(text)
        another_process()
        machine.mode(model), machine.mode(model, replace(AUTO, cache_type_k="q8_0"))
        assert len(machine.tried) == 4 + 2 * n  # a damaged result is measured again


def test_a_cache_that_cannot_be_written(model: GGUF, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    cache.write_text("a file")
    machine = Machine(monkeypatch, layer=2.0, row=1.0)
    assert machine.mode(model) == machine.mode(model) == "row"
    assert machine.tried == ["layer", "row"]


def test_what_needs_no_measurement(model: GGUF, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    assert machine.mode(model, replace(AUTO, split_mode="row")) == "row"
    machine.devices.pop()  # one card
    assert machine.mode(model, replace(AUTO, tensor_split=None)) == "layer"
    assert machine.tried == []


def test_a_mode_without_room_is_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The output is a half layer's weight on the last card; its rows can be shared."""
    model = GGUF(Tiny(layers=6, context=512).write(tmp_path / "model.gguf"))
    facts, modes = ModelFacts.from_outline(model), ("layer", "row")
    for memory in range(700_000, 1_200_000, 10_000):
        machine = Machine(monkeypatch, memory)
        fits = [
            mode for mode in modes if make_plan(facts, machine.devices, replace(AUTO, split_mode=mode)).fits
        ]
        if len(fits) == 1:
            assert machine.mode(model) == fits[0]
            assert machine.tried == []
            return
    pytest.fail("there is no memory for which only one of them fits")


@pytest.mark.parametrize(
    "shape",
    [
        Tiny(layers=6, extra={"attention.head_count_kv": [2] * 6}),
        Tiny(arch="qwen3moe", layers=6, experts=4, experts_used=2),
    ],
)
def test_the_first_layers_are_a_model(shape: Tiny, tmp_path: Path) -> None:
    whole = GGUF(shape.write(tmp_path / "whole.gguf"))
    first = FirstLayers(whole, 4)
    config = Config.from_gguf(first)
    assert (config.layers, len(whole.tensors) > len(first.tensors)) == (4, True)
    assert FirstLayers(whole, 99).tensors == whole.tensors
    cpu = Cpu(1)
    model = Engine(first, config, single(config, "cpu"), {"cpu": cpu}, Sizes(64))
    assert np.isfinite(model.decode([1, 2, 3])).all()
    cpu.close()


def test_measured_on_devices(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Tiny(layers=6, context=512).write(tmp_path / "model.gguf")
    tokens = [1, 2, 3, 4]
    with LLM(path, devices="cpu", n_ctx=64) as cpu:
        want = cpu.logits(tokens)
    tops, init = set[TopK | None](), Outputs.__init__
    monkeypatch.setattr(
        Outputs, "__init__", lambda self, b, *args: (tops.add(b.top), init(self, b, *args))[1]
    )
    monkeypatch.setattr(engine, "_FEW_LOGITS", 0)
    with LLM(path, devices=TWO, split_mode="auto", tensor_split=(1, 1), n_ctx=64) as llm:
        (file,) = cache.glob("split-*")
        known = json.loads(file.read_text())
        assert set(known["seconds"]) == {"layer", "row"}
        assert min(known["seconds"].values()) > 0
        assert llm.planned.options.split_mode == known["mode"]
        assert tops == {TopK(64, 50)}  # what a text takes of the 50 words, in powers of two
        np.testing.assert_allclose(llm.logits(tokens), want, atol=0.05)


def test_plans_take_what_is_predicted(model: GGUF, monkeypatch: pytest.MonkeyPatch) -> None:
    facts, devices = ModelFacts.from_outline(model), Machine(monkeypatch).devices
    plans = {mode: make_plan(facts, devices, replace(AUTO, split_mode=mode)) for mode in ("layer", "row")}
    found = make_plan(facts, devices, AUTO)
    assert found.speed.pace == min(planned.speed.pace for planned in plans.values())
    assert found.options.split_mode in plans


def test_what_cannot_be_tried(model: GGUF, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """A mode that fails is out; where four layers find no room on cards, the prediction counts."""
    machine = Machine(monkeypatch)
    predicted = make_plan(ModelFacts.from_outline(model), machine.devices, AUTO).options.split_mode

    def failing(error: GgrunError, *modes: str) -> str:
        def measured(_: GGUF, planned: Planned, *rest: object) -> float:
            if planned.options.split_mode in modes:
                raise error
            return 1.0

        monkeypatch.setattr(split_trial, "_seconds", measured)
        another_process()
        return machine.mode(model)

    assert failing(GgrunError("cards cannot share rows"), "row") == "layer"
    assert failing(GgrunError("no"), "layer") == "row"
    assert failing(GgrunError("no"), "layer", "row") in ("layer", "row")
    assert failing(DoesNotFit("no room"), "layer") == predicted
    with pytest.raises(Interrupted):
        failing(Interrupted("now"), "layer")
    assert not cache.exists()


def test_a_trial_without_room_on_cards(tmp_path: Path, cache: Path) -> None:
    path = Tiny(layers=8, context=512).write(tmp_path / "model.gguf")
    options: dict[str, Any] = {"n_gpu_layers": 2, "tensor_split": (1, 1), "n_ctx": 64, "n_ubatch": 16}
    with LLM(path, devices="cpu:0:600KB,cpu:1:600KB,cpu", split_mode="auto", **options) as llm:
        assert np.isfinite(llm.logits([1, 2, 3])).all()
