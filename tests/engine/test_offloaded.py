"""Feed-forwards that the CPU holds and a card computes for large batches: answers, waits, memory, time."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ggrun import LLM, GgrunError, Interrupted
from ggrun.arch.config import Config
from ggrun.devices import emulated, local
from ggrun.devices.base import Device
from ggrun.devices.cpu import Cpu
from ggrun.devices.cuda.device import Cuda
from ggrun.devices.emulated import COPY, LAUNCH, LOAD, Emulated, EmulatedSlot
from ggrun.devices.late import Schedule
from ggrun.devices.streams import INLINE, Inline, Stream, Threaded, Work
from ggrun.engine.engine import Engine
from ggrun.engine.meter import Meter, Spent
from ggrun.gguf import GGUF
from ggrun.plan.facts import ModelFacts
from ggrun.plan.hardware import DeviceInfo
from ggrun.plan.offload import NONE, SLOTS
from ggrun.plan.usage import Sizes
from tests.cuda.models import cards as cuda_cards
from tests.offloads import (
    LAYERS,
    LEAST,
    MODELS,
    ROOM,
    TOKENS,
    beside_the_cpu,
    cuda_machine,
    least_room,
    offloads_of,
)
from tests.tiny import Tiny
from tests.waits import left_out, lines_that_wait


class Machine:
    """A model on emulated cards beside a CPU, in batches of 16; all feed-forwards are the CPU's.

    offloaded    whether the cards compute them too
    """

    def __init__(
        self,
        model: GGUF,
        seed: int = 0,
        cards: int = 1,
        offloaded: bool = True,
        limit: int | None = None,
        nbytes: int = ROOM,
        meter: Meter | None = None,
        stream: Stream = INLINE,
    ) -> None:
        config, self.schedule = Config.from_gguf(model), Schedule(seed)
        self.cards = [Emulated(f"emulated:{i}", limit, self.schedule) for i in range(cards)]
        self.devices: dict[str, Device] = {"cpu": Cpu(2, stream=stream)}
        self.devices |= {card.name: card for card in self.cards}
        plan = beside_the_cpu(config, [card.name for card in self.cards])
        offloads = offloads_of(plan, nbytes=nbytes) if offloaded else NONE
        sizes = Sizes(64, 16)
        self.engine = Engine(model, config, plan, self.devices, sizes, meter=meter, offloads=offloads)
        self.settle()

    def settle(self) -> float:
        """Wait for all devices; the virtual time."""
        for device in self.devices.values():
            device.stream.synchronize()
        return self.schedule.now

    def logits(self, size: int = 60) -> np.ndarray:
        """Of all tokens, `size` of them a run."""
        self.engine.cache.truncate(0, 0)
        runs = (TOKENS[i : i + size] for i in range(0, 60, size))
        return np.concatenate([self.engine.decode(run, all_logits=True) for run in runs])


@contextmanager
def machine(model: GGUF, **how: object) -> Iterator[Machine]:
    made = Machine(model, **how)  # type: ignore[arg-type]
    yield made
    for device in made.devices.values():
        device.close()


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> GGUF:
    return GGUF(MODELS[request.param].write(tmp_path / "model.gguf"))


@pytest.fixture
def dense(tmp_path: Path) -> GGUF:
    return GGUF(MODELS["dense"].write(tmp_path / "model.gguf"))


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of matrices that were loaded to a slot of an emulated card, from now on."""
    names: list[str] = []
    weight = EmulatedSlot.weight

    def noted(self: EmulatedSlot, tensor: object, *cuts: object) -> tuple[object, Work]:
        placed, load = weight(self, tensor, *cuts)  # type: ignore[arg-type]
        return placed, lambda: (names.append(tensor.name), load())[1]  # type: ignore[attr-defined]

    monkeypatch.setattr(EmulatedSlot, "weight", noted)
    return names


# ---------------------------------------------------------------- answers


@pytest.mark.parametrize("cards", [1, 2])
@pytest.mark.parametrize("threaded", [False, True])
def test_the_card_says_what_the_cpu_does(cards: int, threaded: bool, model: GGUF) -> None:
    """Bit for bit: emulated devices have the CPU's kernels."""
    with machine(model, offloaded=False) as alone:
        want = {size: alone.logits(size) for size in (60, 20, 10, 5)}
    for seed in range(4):
        stream = Threaded("cpu") if threaded else Inline()
        with machine(model, cards=cards, seed=seed, stream=stream) as both:
            for size, logits in want.items():
                np.testing.assert_array_equal(both.logits(size), logits)


def test_small_batches_are_the_cpus(dense: GGUF, loaded: list[str]) -> None:
    with machine(dense) as made:
        made.engine.decode(TOKENS[: LEAST - 1])
        assert loaded == []
        made.engine.decode(TOKENS[:LEAST])
        names = [f"blk.{i}.ffn_{name}.weight" for i in range(LAYERS) for name in ("gate", "up", "down")]
        assert loaded == names
        made.engine.decode(TOKENS[:20])  # 16, and 4 behind them
        assert loaded == 2 * names


def test_batches_that_are_under_way_share_what_is_loaded(dense: GGUF, loaded: list[str]) -> None:
    with machine(dense) as made:
        made.engine.decode(TOKENS[:48])
    assert len(loaded) == 3 * LAYERS


# ---------------------------------------------------------------- overlap, in virtual time


def test_weights_come_while_the_card_computes(dense: GGUF) -> None:
    """Where that takes no longer than the programs, only these count, and the copies within the card."""
    assert 3 * LOAD < 2 * LAUNCH
    with machine(dense) as made:
        begin = made.settle()
        made.engine.decode(TOKENS[:16])
        spent = made.settle() - begin
    # A boundary is a copy to the inbox and one from there; the logits are another.
    assert spent == pytest.approx(2 * LAYERS * (LAUNCH + 2 * COPY) + LAUNCH + COPY)


def test_a_card_that_waits_for_weights(dense: GGUF, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they take longer, they come one behind the other: of two slots one is free by then."""
    monkeypatch.setattr(emulated, "LOAD", load := 4 * LAUNCH)
    with machine(dense) as made:
        begin = made.settle()
        made.engine.decode(TOKENS[:16])
        spent = made.settle() - begin
    assert spent == pytest.approx(LAYERS * 3 * load + 2 * LAUNCH + 2 * COPY + COPY)


def test_waiting_for_weights_is_no_work(dense: GGUF, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emulated, "LOAD", 4 * LAUNCH)
    meter = Meter()
    with machine(dense, meter=meter) as made:
        made.engine.decode(TOKENS[:16])
    assert meter.spent["emulated:0", Spent.WORK] == pytest.approx((2 * LAYERS + 1) * LAUNCH)
    assert ("cpu", Spent.WORK) not in meter.spent


# ---------------------------------------------------------------- every wait is needed


def emulated_logits(model: GGUF, seed: int) -> np.ndarray:
    with machine(model, seed=seed) as made:
        return made.logits()


def cuda_logits(model: GGUF, seed: int) -> np.ndarray:
    _, engine = cuda_machine(model, seed)
    return engine.decode(TOKENS[:16], all_logits=True)


@pytest.mark.parametrize("logits", [emulated_logits, cuda_logits])
def test_a_missing_wait_is_seen(logits: Callable[[GGUF, int], np.ndarray], dense: GGUF) -> None:
    """For each of the lines here that make a stream wait, some order gives wrong logits without it."""
    want = logits(dense, 0)
    lines = [line for line in lines_that_wait(lambda: logits(dense, 0)) if line[0] == "offloaded.py"]
    assert len(lines) == 2  # for weights, and for room
    assert all(np.array_equal(logits(dense, seed), want) for seed in range(1, 4))
    for line in lines:
        with left_out(line):
            assert any(not np.array_equal(logits(dense, seed), want) for seed in range(30)), f"{line}"


# ---------------------------------------------------------------- memory, and the whole of it


def test_what_the_planner_counts_is_enough(model: GGUF, loaded: list[str]) -> None:
    nbytes = ModelFacts.from_outline(model).part(1)
    with machine(model, limit=least_room(model, "emulated:0"), nbytes=nbytes.total + nbytes.padding) as made:
        made.logits()
    assert len(set(loaded)) >= 3 * made.engine.config.layers


def test_all_of_it(tmp_path: Path, loaded: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A model by its file and flags, on a card that is said to be fast."""
    path = Tiny(layers=3, context=128).write(tmp_path / "model.gguf")
    there = local.local_devices

    def fast(*args: Any) -> list[DeviceInfo]:
        speeds = dict.fromkeys(("bandwidth", "operations", "float_operations", "link"), 1e18)
        return [d if d.host else replace(d, **speeds) for d in there(*args)]

    monkeypatch.setattr(local, "local_devices", fast)
    monkeypatch.setattr(local, "here_is_known", lambda threads: True)
    how: dict[str, Any] = {"devices": "emulated:0:64MB,cpu", "n_cpu_ffn": 2}
    how |= {"n_gpu_layers": "all", "threads": 2}
    with LLM(path, op_offload=False, **how) as llm:
        want = llm.logits(TOKENS)
        assert loaded == []
    with LLM(path, **how) as llm:
        assert list(llm.planned.offloads) == [2, 4]
        np.testing.assert_array_equal(llm.logits(TOKENS), want)
    assert len(loaded) == 6


# ---------------------------------------------------------------- what goes wrong


def test_a_card_without_room_leaves_it_to_the_cpu(dense: GGUF, loaded: list[str]) -> None:
    """Whatever there is no room for, slots or buffers: the model loads, and says the same."""
    with machine(dense, offloaded=False) as alone:
        want, needed = alone.logits(), alone.cards[0]._cpu._budget.used
    with machine(dense) as both:
        enough = both.cards[0]._cpu._budget.used
    assert enough > needed + SLOTS * ROOM
    for limit in (needed, needed + ROOM, needed + SLOTS * ROOM, enough - 1):
        with machine(dense, limit=limit) as made:
            np.testing.assert_array_equal(made.logits(), want)
    assert loaded == []
    with machine(dense, limit=enough) as made:
        np.testing.assert_array_equal(made.logits(), want)
    assert loaded


def test_a_slot_that_is_too_small(dense: GGUF, loaded: list[str]) -> None:
    """What the planner says of it is checked before anything is placed there."""
    tensor = dense.tensors["blk.0.ffn_up.weight"]
    (cuda,) = cuda_cards(1).values()
    for device in (Emulated("emulated:0"), cuda):
        slot = device.slot(2 * tensor.data.nbytes)
        assert slot
        for _ in range(2):
            slot.begin()
            for _ in range(2):
                slot.weight(tensor, (0, 96), (0, 64))
            with pytest.raises(GgrunError, match=r"no room for the weights blk.0.ffn_up.weight"):
                slot.weight(tensor, (0, 96), (0, 64))
    assert Cpu(1).slot(1 << 10) is None


@pytest.mark.parametrize("at", [1, 4, 8, 13, 18])
@pytest.mark.parametrize("how", ["error", "interrupt"])
@pytest.mark.parametrize("kind", ["emulated", "cuda"])
def test_what_ends_in_the_middle_can_begin_anew(
    kind: str, how: str, at: int, dense: GGUF, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the load of any matrix: what a slot has then is not taken for what it should have."""
    devices, engine = (
        cuda_machine(dense, 3) if kind == "cuda" else ((m := Machine(dense, 3)).devices, m.engine)
    )
    (card,) = (device for name, device in devices.items() if name != "cpu")
    want = engine.decode(TOKENS[:16], all_logits=True)
    count = 0

    def disturbed(load: Callable[..., None], *args: object, **options: object) -> None:
        nonlocal count
        count += 1
        load(*args, **options)
        if count == at:
            if how == "interrupt":
                engine.interrupt()
            else:
                raise GgrunError("the bus is gone")

    owner, name = (card.driver, "upload") if isinstance(card, Cuda) else (card.slot(1).stream, "enqueue")
    real = getattr(owner, name)

    def beside(*args: object, **options: object) -> None:
        if options.get("beside") or kind == "emulated":
            disturbed(real, *args, **options)
        else:
            real(*args, **options)

    engine.cache.truncate(0, 0)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, beside)
        with pytest.raises(Interrupted if how == "interrupt" else GgrunError):
            engine.decode(TOKENS[20:36])
    assert count >= at
    engine.resume()
    np.testing.assert_array_equal(engine.decode(TOKENS[:16], all_logits=True), want)
