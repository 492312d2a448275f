"""How a plan is walked: what overlaps, what is counted, and that every wait is needed."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from ggrun.arch.config import Config
from ggrun.devices.base import Device
from ggrun.devices.emulated import COPY, LAUNCH, Emulated
from ggrun.devices.exchange import Exchange
from ggrun.devices.late import Schedule
from ggrun.engine.engine import Engine
from ggrun.engine.pipeline import schedule
from ggrun.gguf import GGUF
from ggrun.plan import Plan
from ggrun.plan.usage import Sizes
from tests.plans import Plans
from tests.tiny import Tiny
from tests.waits import left_out, lines_that_wait

NAMES = ("a", "b", "c", "d")
TOKENS = [i % 50 for i in range(64)]


@pytest.fixture
def model(tmp_path: Path) -> GGUF:
    return GGUF(Tiny(layers=4).write(tmp_path / "model.gguf"))


class Cards:
    """Emulated devices, and an engine that runs a plan on them in batches of 8 tokens."""

    def __init__(self, model: GGUF, plan: Plan, seed: int = 0, sequences: int = 1) -> None:
        self.schedule = Schedule(seed)
        self.devices: dict[str, Device] = {name: Emulated(name, None, self.schedule) for name in NAMES}
        options = Sizes(64 * sequences, 8, sequences)
        self.engine = Engine(model, Config.from_gguf(model), plan, self.devices, options)
        self.settle()

    def settle(self) -> float:
        """Wait for all devices; the virtual time."""
        for device in self.devices.values():
            device.stream.synchronize()
        return self.schedule.now

    def close(self) -> None:
        for device in self.devices.values():
            device.close()


@contextmanager
def cards(model: GGUF, kind: str, seed: int = 0, sequences: int = 1) -> Iterator[Cards]:
    made = Cards(model, Plans(model, NAMES)[kind], seed, sequences)
    yield made
    made.close()


# ---------------------------------------------------------------- overlap, in virtual time


def test_batches_overlap(model: GGUF) -> None:
    """8 batches through two stages: while the second computes one, the first computes the next."""
    with cards(model, "layer 2") as both:
        begin = both.settle()
        for i in range(0, 64, 8):
            both.engine.decode(TOKENS[i : i + 8])
        alone, begin = both.settle() - begin, both.settle()
        both.engine.cache.truncate(0, 0)
        both.engine.decode(TOKENS)
        together = both.settle() - begin
    assert alone == pytest.approx(8 * (2 * LAUNCH + 2 * COPY) + 8 * COPY)
    assert together == pytest.approx(9 * LAUNCH + 8 * COPY + 2 * COPY)
    assert together <= 0.65 * alone


def test_sequences_overlap(model: GGUF) -> None:
    """Single tokens of several sequences are batches as any others, and do not see each other."""
    texts = {0: TOKENS[:7], 1: TOKENS[20:31]}
    with cards(model, "layer 2", sequences=2) as one_by_one:
        engine, want = one_by_one.engine, {}
        begin = one_by_one.settle()
        for sequence, text in texts.items():
            engine.decode(text[:-1], sequence)
            want[sequence] = engine.decode(text[-1:], sequence)
    with cards(model, "layer 2", sequences=2) as both:
        engine, batches = both.engine, []
        for sequence, text in texts.items():
            engine.decode(text[:-1], sequence)
            token = np.array(text[-1:], np.int32)
            batches.append(engine._batch(token, sequence, len(text) - 1, False, None))
        begin = both.settle()
        scores = engine._pipeline.run(batches)
        assert both.settle() - begin < 3.2 * LAUNCH  # and not 4
    for sequence in texts:
        np.testing.assert_array_equal(scores[sequence].logits, want[sequence])


@pytest.mark.parametrize("stages", [1, 2, 3, 7])
@pytest.mark.parametrize("batches", [0, 1, 2, 9])
@pytest.mark.parametrize("window", [2, 3, 5])
def test_the_schedule(stages: int, batches: int, window: int) -> None:
    order = list(schedule(stages, batches, window))
    assert sorted(order) == [(s, b) for s in range(stages) for b in range(batches)]
    for batch in range(batches):
        assert [s for s, b in order if b == batch] == list(range(stages))
    for stage in range(stages):
        assert [b for s, b in order if s == stage] == list(range(batches))
    for i in range(len(order)):
        begun, done = {b for _, b in order[: i + 1]}, {b for s, b in order[:i] if s == stages - 1}
        assert len(begun - done) <= window


# ---------------------------------------------------------------- what is counted


def count(monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], list[tuple[str, str]]]:
    """Sums, and copies from one device to another, from now on."""
    sums: list[str] = []
    copies: list[tuple[str, str]] = []
    all_reduce, copy = Exchange.all_reduce, Emulated.copy

    def counted_sum(self: Exchange, *args: object) -> None:
        sums.append("sum")
        all_reduce(self, *args)

    def counted_copy(self: Emulated, source: object, rows: int, device: Device, target: object) -> None:
        if device is not self:
            copies.append((self.name, device.name))
        copy(self, source, rows, device, target)

    monkeypatch.setattr(Exchange, "all_reduce", counted_sum)
    monkeypatch.setattr(Emulated, "copy", counted_copy)
    return sums, copies


def test_two_sums_a_layer(model: GGUF, monkeypatch: pytest.MonkeyPatch) -> None:
    with cards(model, "row 2") as made:
        sums, copies = count(monkeypatch)
        made.engine.decode(TOKENS[:8])
    assert len(sums) == 2 * 4
    assert copies == [("a", "b"), ("b", "a")] * 8


@pytest.mark.parametrize("kind", ["layer 2", "layer 4", "overflow most", "half layers", "regex"])
def test_one_copy_a_boundary(kind: str, model: GGUF, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plans(model, NAMES)[kind]
    with cards(model, kind) as made:
        sums, copies = count(monkeypatch)
        made.engine.decode(TOKENS[:8])
    assert sums == []
    assert copies == [(a.members[0].device, b.members[0].device) for a, b in pairwise(plan.stages)]


# ---------------------------------------------------------------- every wait is needed


@pytest.mark.parametrize("kind", ["layer 2", "layer 4", "row 2", "row 3"])
def test_a_missing_wait_is_seen(kind: str, model: GGUF) -> None:
    """For each line that makes a stream wait, some order of the streams gives wrong logits without it."""
    with cards(model, kind) as made:
        want = made.engine.decode(TOKENS, all_logits=True)
    with cards(model, kind) as made:
        lines = lines_that_wait(lambda: made.engine.decode(TOKENS))
    assert len(lines) == 2  # for what comes, and for room

    def wrong(seed: int) -> bool:
        with cards(model, kind, seed) as made:
            return not np.array_equal(made.engine.decode(TOKENS, all_logits=True), want)

    assert not any(wrong(seed) for seed in range(5))
    for line in lines:
        with left_out(line):
            assert any(wrong(seed) for seed in range(30)), f"{line} is not needed"
