"""The best logits, found by a card: sampling from them, texts of models, graphs, memory."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ggrun.devices.base import Device
from ggrun.devices.best import TopK
from ggrun.devices.cuda.device import Cuda
from ggrun.engine import engine as engine_module
from ggrun.engine.engine import Engine
from ggrun.engine.generate import Context, Timings, generate
from ggrun.engine.sampler import Sampler, SamplingOptions
from ggrun.gguf import GGUF, Outline
from ggrun.plan import single
from ggrun.plan.facts import ModelFacts
from ggrun.plan.usage import Sizes, plan_use
from tests.cuda.conftest import Card
from tests.cuda.models import cards, engine
from tests.engine.test_outputs import (
    OPTIONS,
    ROWS,
    SAMPLING,
    VOCAB,
    WORDS,
    Shares,
    check,
    check_several,
    with_equals,
)
from tests.plans import Plans
from tests.tiny import Tiny

pytestmark = pytest.mark.cuda


@pytest.fixture(autouse=True)
def _many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "_FEW_LOGITS", 0)


@pytest.fixture(scope="module", params=[1, 2])
def shares(request: pytest.FixtureRequest) -> Shares:
    cuts = {1: [0, VOCAB], 2: [0, 900, VOCAB]}
    return Shares(list(cards(request.param).values()), cuts[request.param])


@settings(deadline=None, max_examples=40)
@given(logits=ROWS, words=st.integers(1, VOCAB), options=OPTIONS)
def test_the_best_are_enough(
    shares: Shares, logits: list[float], words: int, options: dict[str, Any]
) -> None:
    check(shares, np.array(logits, np.float32), words, options)


def test_several_outputs(shares: Shares) -> None:
    check_several(shares)


@pytest.mark.parametrize("card", ["800-forward", "800-reverse"], indirect=True)
def test_candidates_of_candidates(card: Card) -> None:
    """So many that a launch is given what two before it have left; in any order of blocks."""
    logits = np.random.default_rng(3).integers(0, 9000, (2, 270_000)).astype(np.float32)
    got, ids = Shares([Cuda(card.driver, "cuda:0")], [0, 270_000]).scores(logits, TopK(128, 269_999))
    want = np.argsort(-logits[:, :-1], axis=1, kind="stable")[:, :128]
    np.testing.assert_array_equal(ids, want)
    np.testing.assert_array_equal(got, np.take_along_axis(logits, want, 1))


def texts(model: Engine) -> list[list[int]]:
    def text(options: dict[str, Any]) -> Iterator[int]:
        context = Context(model)
        model.cache.truncate(0, 0)
        sampler = Sampler(SamplingOptions(**options))
        return generate(context, context.text(), [1, 2, 3], sampler, Timings(), WORDS)

    return [list(islice(text(options), 8)) for options in SAMPLING]


@pytest.mark.parametrize(("kind", "seed"), [("none", 0), ("row 2", 1), ("everything", 2)])
def test_texts_are_the_same(kind: str, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, devices = with_equals(tmp_path / "model.gguf"), cards(4, seed=seed)
    model = engine(path, devices, Plans(GGUF(path), tuple(devices))[kind], n_ubatch=2)
    few = texts(model)
    assert max(map(max, few)) < WORDS
    monkeypatch.setattr(Sampler, "needs", 0)
    assert texts(model) == few


def only_card(devices: dict[str, Device]) -> Cuda:
    (device,) = devices.values()
    assert isinstance(device, Cuda)
    return device


def test_little_comes_to_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The best are a part of the graph that a token is, all logits of another: they may take turns."""
    devices = cards(1)
    driver = only_card(devices).driver
    model = engine(with_equals(tmp_path / "model.gguf"), devices)
    launched: list[str] = []
    downloaded: list[int] = []
    launch, download = driver.launch, driver.download
    monkeypatch.setattr(
        driver, "launch", lambda kernel, *rest: (launched.append(kernel.name), launch(kernel, *rest))
    )
    monkeypatch.setattr(
        driver, "download", lambda data, at: (downloaded.append(data.nbytes), download(data, at))
    )
    wanted = [None, TopK(1, WORDS), TopK(40, WORDS)]
    for top in wanted:
        model.evaluate([1], top=top)
        model.evaluate([1], top=top)
    assert {"argmax", "argmax_of_slices", "top_k", "top_k_of_slices"} <= set(launched)
    launched.clear()
    downloaded.clear()
    for top in wanted * 2:
        model.evaluate([1], top=top)
    assert launched == []
    assert downloaded == [4 * VOCAB, 2 * 4 * 1, 2 * 4 * 64] * 2


@pytest.mark.parametrize("vocab", [2000, 4097, 40_000])
def test_no_more_memory_is_taken_than_planned(vocab: int, tmp_path: Path) -> None:
    """Of a vocabulary that is large beside the rest of the model."""
    path = Tiny(layers=1, vocab=vocab, width=32, kv_heads=1, heads=1).write(tmp_path / "model.gguf")
    devices = cards(1)
    device = only_card(devices)
    before = device.available()
    held = engine(path, devices, n_ubatch=64)
    facts = ModelFacts.from_outline(Outline.read(path))
    planned = plan_use(facts, single(held.config, "cuda:0"), Sizes(256, 64), 0)["cuda:0"]
    scratch = 32 << 20  # for cards that are much larger than the emulated ones
    assert 0 < before - device.available() <= planned.total - scratch
