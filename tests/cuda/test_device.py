"""A CUDA device, on emulated cards: models of all kinds, several cards, graphs, limits, interrupts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from ggrun import GgrunError, Interrupted
from ggrun.devices import open_devices
from ggrun.devices.base import Inputs, Limits, Rows
from ggrun.devices.cuda import device as module
from ggrun.devices.cuda.device import Cuda
from ggrun.devices.cuda.driver import OutOfMemory
from ggrun.devices.cuda.gemm import GemmFrom
from ggrun.gguf import GGUF, Outline
from ggrun.plan import Plan, single
from ggrun.plan.facts import ModelFacts
from ggrun.plan.usage import Sizes, plan_use
from tests.cuda.models import cards, engine, logits
from tests.engine.test_peer import distance
from tests.engine.test_plans import MODELS
from tests.plans import Plans
from tests.thinned import diagonal
from tests.tiny import Tiny
from tools.cuda_emulator.driver import COPY

pytestmark = pytest.mark.cuda

BY_CUBLAS = GemmFrom(9, 9, 9)
TOKENS = [i * 7 % 36 for i in range(30)]


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_a_card_computes_what_the_cpu_does(model: Tiny, tmp_path: Path) -> None:
    path = model.write(tmp_path / "model.gguf")
    want = logits(engine(path, open_devices(["cpu"], 2)), TOKENS)
    card = engine(path, cards(1))
    # Of quantized activations a byte may fall on the other side of a step: of twelve such models four come to
    # between 1e-5 and 6e-5, the others to 1e-12.
    bars = {GGMLQuantizationType.F32: 1e-6, GGMLQuantizationType.Q8_0: 1e-4}
    bar = bars.get(model.format, 1e-5)
    for size in (1000, 9, 8, 3, 1):
        assert distance(logits(card, TOKENS, size), want) <= bar


@pytest.mark.parametrize("kind", ["f32", "bf16", "q8_0"])
def test_kinds_of_cells(kind: str, tmp_path: Path) -> None:
    path = Tiny(layers=2).write(tmp_path / "model.gguf")
    cells = {"keys": kind, "values": kind}
    want = logits(engine(path, open_devices(["cpu"], 2), **cells), TOKENS)
    card = engine(path, cards(1), **cells)
    for size in (1000, 1):
        assert distance(logits(card, TOKENS, size), want) <= 1e-6


KINDS = ["layer 2", "layer 4", "row 2", "row 3", "half layers", "row inside layer", "everything"]


@pytest.mark.parametrize(("kind", "seed"), diagonal(KINDS, range(3)))
def test_several_cards(kind: str, seed: int, tmp_path: Path) -> None:
    path = Tiny(layers=3).write(tmp_path / "model.gguf")
    want = logits(engine(path, open_devices(["cpu"], 2)), TOKENS)
    devices = cards(4, seed=seed)
    split = engine(path, devices, Plans(GGUF(path), tuple(devices))[kind], n_ubatch=8)
    assert distance(logits(split, TOKENS), want) <= 1e-6
    assert distance(logits(split, TOKENS, 1), want) <= 1e-6


@pytest.mark.parametrize(("kind", "seed"), diagonal(["overflow 1", "row 2", "everything"], range(3)))
def test_cards_beside_cpus(kind: str, seed: int, tmp_path: Path) -> None:
    path = Tiny(layers=3).write(tmp_path / "model.gguf")
    want = logits(engine(path, open_devices(["cpu"], 2)), TOKENS)
    devices = open_devices(["cpu:0", "cpu:1"], 2) | cards(2, seed=seed)
    names = ("cpu:0", "cuda:0", "cpu:1", "cuda:1")
    split = engine(path, devices, Plans(GGUF(path), names)[kind], n_ubatch=8)
    assert distance(logits(split, TOKENS), want) <= 1e-6


def test_keys_and_values_on_the_host(tmp_path: Path) -> None:
    path = Tiny(layers=2).write(tmp_path / "model.gguf")
    want = logits(engine(path, open_devices(["cpu"], 2)), TOKENS)
    devices = cards(1)
    plan = Plans(GGUF(path), ("cuda:0",) * 4)["none"]
    on_host = engine(path, devices, Plan(plan.stages, kv_on_host=True))
    assert distance(logits(on_host, TOKENS, 7), want) <= 1e-6


def test_several_sequences(tmp_path: Path) -> None:
    path = Tiny(layers=2).write(tmp_path / "model.gguf")
    one, several = engine(path, cards(1)), engine(path, cards(1), sequences=3)
    for sequence in (0, 2, 1):
        several.decode(TOKENS[sequence:], sequence)
    for sequence in (1, 0, 2):
        one.cache.truncate(0, 0)
        one.decode(TOKENS[sequence:])
        got = several.decode([5], sequence)
        np.testing.assert_allclose(got, one.decode([5]), rtol=1e-5, atol=1e-5)


def test_tokens_replay_a_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the third token on with the same counts nothing is launched but a graph."""
    path = Tiny(layers=2).write(tmp_path / "model.gguf")
    devices = cards(1)
    (device,) = devices.values()
    assert isinstance(device, Cuda)
    launched: list[str] = []
    launch = device.driver.launch
    monkeypatch.setattr(
        device.driver, "launch", lambda kernel, *rest: (launched.append(kernel.name), launch(kernel, *rest))
    )
    card = engine(path, devices)
    for _ in range(2):
        card.decode([1])
    assert launched
    launched.clear()
    want = [card.decode([token]) for token in (3, 4)]
    assert launched == []
    card.cache.truncate(0, 2)
    np.testing.assert_array_equal(card.decode([3, 4], all_logits=True)[1:].argmax(), want[1].argmax())


def test_what_was_interrupted_ends_and_can_go_on(tmp_path: Path) -> None:
    path = Tiny(layers=2).write(tmp_path / "model.gguf")
    card = engine(path, cards(1), n_ubatch=4)
    want = logits(card, TOKENS)
    card.interrupt()
    with pytest.raises(Interrupted):
        card.decode([1])
    card.resume()
    np.testing.assert_array_equal(logits(card, TOKENS), want)


def test_an_interrupt_when_all_is_enqueued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A card finishes what it has got; nobody gets the result."""
    card = engine(Tiny(layers=2).write(tmp_path / "model.gguf"), cards(1))
    want, run = logits(card, TOKENS), card._pipeline.run

    def interrupted(*args: Any) -> Any:
        found = run(*args)
        card.interrupt()
        return found

    monkeypatch.setattr(card._pipeline, "run", interrupted)
    with pytest.raises(Interrupted):
        card.decode([1])
    monkeypatch.undo()
    card.resume()
    assert card.cache.length(0) == len(TOKENS)  # without the one more
    np.testing.assert_array_equal(logits(card, TOKENS), want)


def test_memory_that_is_short(tmp_path: Path) -> None:
    """Whatever is the first to find no room: device, thing and bytes are named, and all is given back."""
    path = Tiny(layers=2).write(tmp_path / "model.gguf")
    devices = cards(1)
    (device,) = devices.values()
    assert isinstance(device, Cuda)
    before = device.available()
    held = engine(path, devices)
    needed = before - device.available()
    assert held.n_ctx == 256
    told = set()
    for limit in range(0, needed, needed // 40):
        with pytest.raises(GgrunError, match=r"^cuda:0: ") as error:
            engine(path, cards(1, limit=limit))
        assert "\n" not in str(error.value)
        told |= {what for what in ("weights", "KV cache", "working memory") if what in str(error.value)}
    assert told == {"weights", "KV cache", "working memory"}


@pytest.mark.skipif("config.getoption('device') == 'cuda'")
def test_bandwidth_is_that_of_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted on the emulator's clock; the memory is given back."""
    monkeypatch.setattr(module, "_DRAWN", 3000)
    (device,) = cards(1, limit=1 << 22).values()
    assert isinstance(device, Cuda)
    assert device.bandwidth() == pytest.approx(2 * ((1 << 22) // 3) / COPY)
    assert device.copy_rates(10_000, 3) == pytest.approx([2 * 10_000 / COPY] * 3)
    assert device.available() == 1 << 22


def test_what_a_cache_would_hold_is_no_memory() -> None:
    (device,) = cards(1, limit=1 << 14).values()
    with pytest.raises(OutOfMemory, match="cuda:0: 0 MiB are free, too little to measure its memory with"):
        device.bandwidth()


def test_sums_of_many_places() -> None:
    """More than one kernel takes; in the order given, whatever the target."""
    (device,) = cards(1).values()
    assert isinstance(device, Cuda)
    ops = device.recorder(Limits(4, 1, 1, 1))
    rng = np.random.default_rng(1)
    values = rng.standard_normal((11, 3, 6)).astype(np.float32)
    for into in (0, 4, 10, None):
        places = [ops.mailbox(6) for _ in values]
        for place, value in zip(places, values, strict=True):
            device.write(place, value)
        target = ops.mailbox(6) if into is None else places[into]
        device.sum(places, 3, target)
        got = np.empty((3, 6), np.float32)
        device.download(target, 3, got)
        device.stream.synchronize()
        want = values[0]
        for value in values[1:]:
            want = want + value
        np.testing.assert_array_equal(got, want)


def test_an_empty_batch_launches_nothing_wrong() -> None:
    (device,) = cards(1).values()
    ops = device.recorder(Limits(4, 1, 1, 1))
    x = ops.input(64)
    ops.norm(x, device.vector(np.ones(64, np.float32)), 1e-5)
    program = ops.finish()

    def nothing(inputs: Inputs) -> None:
        inputs.counts[Rows.TOKENS] = 0

    ops.feed(nothing)
    program.run()
    device.stream.synchronize()


@pytest.mark.parametrize("kind", ["layer 2", "row 2", "everything"])
def test_several_cards_with_cublas(kind: str, tmp_path: Path) -> None:
    """Where a product is computed changes nothing; by whom, no more than quantized activations do."""
    path = MODELS["q8_0"].write(tmp_path / "model.gguf")
    tiles = logits(engine(path, cards(1)), TOKENS)
    want = logits(engine(path, cards(1, gemm_from=BY_CUBLAS)), TOKENS)
    assert 1e-9 < distance(tiles, want) <= 1e-3
    devices = cards(4, seed=1, gemm_from=BY_CUBLAS)
    split = engine(path, devices, Plans(GGUF(path), tuple(devices))[kind], n_ubatch=16)
    assert distance(logits(split, TOKENS), want) <= 1e-6


@pytest.mark.parametrize("n_ubatch", [8, 64, 256])
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_no_more_memory_is_taken_than_planned(model: Tiny, n_ubatch: int, tmp_path: Path) -> None:
    path, devices = model.write(tmp_path / "model.gguf"), cards(1, gemm_from=BY_CUBLAS)
    (device,) = devices.values()
    before = device.available()
    held = engine(path, devices, n_ubatch=n_ubatch)
    facts = ModelFacts.from_outline(Outline.read(path))
    planned = plan_use(facts, single(held.config, "cuda:0"), Sizes(256, n_ubatch), 0)["cuda:0"]
    scratch = 32 << 20  # for cards that are much larger than the emulated ones
    assert 0 < before - device.available() <= planned.total - scratch
