"""Rows shared by emulated cards: the text of one card, two sums a layer, and no host between them."""

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ggrun.arch.config import Config
from ggrun.devices import exchange
from ggrun.devices.exchange import Exchange
from ggrun.devices.late import Schedule
from ggrun.engine.pipeline import Pipeline
from ggrun.gguf import GGUF
from ggrun.plan import Member, Plan, Stage
from tests.cuda import models
from tests.cuda.models import cards, engine, logits
from tests.engine.test_peer import distance
from tests.tiny import Tiny
from tools.cuda_emulator.driver import EmulatedDriver
from tools.cuda_emulator.kernels import Kernel

pytestmark = pytest.mark.cuda

TOKENS = [i * 7 % 36 for i in range(12)]
LAYERS = 2


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Tiny(layers=LAYERS, heads=8, kv_heads=4).write(tmp_path_factory.mktemp("row") / "model.gguf")


def row(config: Config, devices: list[str]) -> Plan:
    """Heads as even as they can be; of the feed-forward the second has nothing, and only gets the sum."""
    n, group = len(devices), config.heads // config.kv_heads
    kv = list(pairwise(round(config.kv_heads * i / n) for i in range(n + 1)))
    shares = [0, 1, 1, *range(2, n)][: n + 1]
    ff = list(pairwise(config.ff * share // shares[-1] for share in shares))
    vocab = list(pairwise(config.vocab * i // n for i in range(n + 1)))
    heads = [(begin * group, end * group) for begin, end in kv]
    members = map(Member, devices, heads, kv, ff, vocab)
    return Plan((Stage((0, 2 * config.layers), tuple(members)),))


@pytest.fixture
def wanted(path: Path) -> np.ndarray:
    return logits(engine(path, cards(1)), TOKENS)


@pytest.mark.parametrize(
    ("wire", "seeds"), [("f32", 8), pytest.param("f32", 20, marks=pytest.mark.slow), ("bf16", 3)]
)
@pytest.mark.parametrize("n", [2, 3, 4])
def test_the_text_of_one_card(
    n: int, wire: str, seeds: int, path: Path, wanted: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In any order of the streams the same bits, whether few or many rows are summed."""
    monkeypatch.setattr(exchange, "_COPY", 100)
    first = None
    for seed in range(seeds):
        devices = cards(n, seed=seed)
        split = engine(path, devices, row(Config.from_gguf(GGUF(path)), list(devices)), n_ubatch=8, wire=wire)
        got = np.concatenate([logits(split, TOKENS), split.decode([5]), split.decode([6])])
        first = got if first is None else first
        np.testing.assert_array_equal(got, first)
    assert first is not None
    assert distance(first[:-2], wanted) <= (1e-4 if wire == "f32" else 1e-3)
    if wire == "f32":
        np.testing.assert_allclose(first[:-2], wanted, atol=1e-4)
        np.testing.assert_array_equal(first[:-2].argmax(1), wanted.argmax(1))


@pytest.mark.parametrize("n", [2, 3, 4])
def test_two_sums_a_layer_and_no_host_between_them(
    n: int, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if models.REAL:
        pytest.skip("what the host waits for is counted on the emulator")
    devices = cards(n)
    split = engine(path, devices, row(Config.from_gguf(GGUF(path)), list(devices)))
    split.decode(TOKENS)
    sums: list[EmulatedDriver] = []
    enqueued: list[int] = []
    waits: list[str] = []
    all_reduce, run_until, enqueue = Exchange.all_reduce, Schedule.run_until, Pipeline._enqueue
    run = EmulatedDriver._run

    def counted(self: EmulatedDriver, kernel: Kernel, *launch: Any) -> None:
        if kernel.name == "sum":
            sums.append(self)
        run(self, kernel, *launch)

    def given(self: Exchange, parts: Any, rows: int) -> None:
        enqueued.append(rows)
        all_reduce(self, parts, rows)

    def waited(self: Schedule, done: Any) -> None:
        if not done():
            waits.append("host")
        run_until(self, done)

    def noted(self: Pipeline, *args: Any) -> None:
        waits.append("begin")
        enqueue(self, *args)
        waits.append("end")

    monkeypatch.setattr(EmulatedDriver, "_run", counted)
    monkeypatch.setattr(Exchange, "all_reduce", given)
    monkeypatch.setattr(Schedule, "run_until", waited)
    monkeypatch.setattr(Pipeline, "_enqueue", noted)
    for token in range(3):
        split.decode([token])
    drivers = [device.driver for device in devices.values()]
    added = dict.fromkeys(drivers, 3 * 2 * LAYERS)
    if n == 2:  # all of the feed-forward is the first one's
        added[drivers[0]] //= 2
    assert Counter(sums) == added
    assert enqueued == [1] * (2 * 2 * LAYERS)  # the second token's in a graph, which the third one replays
    # The host waits when all of a token is enqueued: for its logits.
    assert [waits[i : i + 2] for i, what in enumerate(waits) if what == "begin"] == [["begin", "end"]] * 3
    assert 0 < waits.count("host") <= 3 * n
