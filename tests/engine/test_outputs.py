"""Sampling from the best logits: token for token as from all of them, wherever they are looked for."""

from collections.abc import Sequence
from contextlib import closing
from itertools import islice, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ggrun import LLM, GgrunError, SamplingOptions
from ggrun.devices import open_devices
from ggrun.devices.base import Device, Limits
from ggrun.devices.best import MOST_K, TopK
from ggrun.devices.emulated import Emulated
from ggrun.engine import engine as engine_module
from ggrun.engine.batch import Batch
from ggrun.engine.outputs import Outputs, Scores, joined
from ggrun.engine.runner import Segment
from ggrun.engine.sampler import Sampler
from ggrun.engine.stage import LoadedStage
from ggrun.engine.workspace import Workspace
from ggrun.gguf import GGUF
from tests.engine.test_plans import CPUS, EMULATED, MIXED
from tests.plans import Plans
from tests.tiny import Tiny

EXTREME = [-np.inf, np.inf, -3.4028235e38, 3.4028235e38, -1.0, -0.0, 0.0, 1.0]


class Shares:
    """A last stage whose logits are given: a share of the ids on each of some devices."""

    def __init__(self, devices: Sequence[Device], cuts: Sequence[int]) -> None:
        self._vocab, self._runners = cuts[-1], []
        for device, share in zip(devices, pairwise(cuts), strict=True):
            weights, config = SimpleNamespace(device=device), SimpleNamespace(experts_used=0)
            space = Workspace(weights, config, Limits(2, 2, 1, 1), 0)
            x = space.ops.input(share[1] - share[0])
            runner = SimpleNamespace(space=space, member=SimpleNamespace(vocab=share))
            runner.best, runner.logits = space.ops.top_k(x, share[0]), space.ops.place(x)
            runner.segments = [Segment(space.ops.finish(), None)]
            self._runners.append(runner)
        self._stage = LoadedStage(self._runners, None)

    def scores(self, logits: np.ndarray, top: TopK | None) -> Scores:
        """What comes to the host of these, [n, vocab]."""
        zeros = np.zeros(len(logits), np.int32)
        batch = Batch(zeros, zeros, zeros, zeros, np.ones(len(logits), np.bool_), {}, top)
        outputs = Outputs(batch, self._vocab)
        for runner in self._runners:
            runner.space.device.write(runner.logits, logits[:, slice(*runner.member.vocab)])
        self._stage.run(batch)
        self._stage.download(batch, outputs)
        for runner in self._runners:
            runner.space.device.stream.synchronize()
        return outputs.scores()


def drawn(options: dict[str, Any], scores: Scores, words: int) -> list[int] | str:
    """Some tokens, or the error."""
    sampler = Sampler(SamplingOptions(**options))
    try:
        return [sampler.sample(*scores.last(words)) for _ in range(4)]
    except GgrunError as error:
        return str(error)


OPTIONS = st.fixed_dictionaries(
    {
        "temp": st.sampled_from([0.0, 0.8, 3.0]),
        "top_k": st.integers(1, MOST_K),
        "top_p": st.sampled_from([0.5, 0.95, 1.0]),
        "min_p": st.sampled_from([0.0, 0.05]),
        "typical": st.sampled_from([0.6, 1.0]),
        "xtc_probability": st.sampled_from([0.0, 0.5]),
        "seed": st.integers(0, 9),
    }
)
ROWS = st.lists(
    st.one_of(st.sampled_from(EXTREME), st.floats(-9, 9, width=32)), min_size=1, max_size=60
)  # equals are many where a row is short and repeated


def check(shares: Shares, logits: np.ndarray, words: int, options: dict[str, Any]) -> None:
    """Logits of one output, the rest of the vocabulary being what must not be looked at."""
    whole = np.full((1, shares._vocab), np.nan, np.float32)
    whole[0, :words] = np.resize(logits, words)
    top = TopK(Sampler(SamplingOptions(**options)).needs, words)
    assert top.k
    got = shares.scores(whole, top)
    assert got.ids is not None
    assert drawn(options, got, words) == drawn(options, Scores(whole), words)


def check_several(shares: Shares) -> None:
    """Several outputs, with equals, by their definition."""
    logits = np.random.default_rng(2).integers(0, 900, (2, shares._vocab)).astype(np.float32)
    words = shares._vocab - 200
    for k in (1, 4, 64):
        got, ids = shares.scores(logits, TopK(k, words))
        want = np.argsort(-logits[:, :words], axis=1, kind="stable")[:, :k]
        assert ids is not None
        np.testing.assert_array_equal(ids[:, :k], want)
        np.testing.assert_array_equal(got[:, :k], np.take_along_axis(logits, want, 1))


@pytest.fixture(scope="module", params=["cpu", "emulated", "cpus", "mixed"])
def shares(request: pytest.FixtureRequest) -> Shares:
    devices: list[Device] = {
        "cpu": lambda: [*open_devices(["cpu"], 1).values()],
        "emulated": lambda: [Emulated("a")],
        "cpus": lambda: [*open_devices(["cpu:0", "cpu:1"], 2).values()],
        "mixed": lambda: [*open_devices(["cpu"], 1).values(), Emulated("a")],
    }[request.param]()
    return Shares(devices, [0, 3000] if len(devices) == 1 else [0, 1100, 3000])


@settings(deadline=None)
@given(logits=ROWS, words=st.integers(1, 3000), options=OPTIONS)
def test_the_best_are_enough(
    shares: Shares, logits: list[float], words: int, options: dict[str, Any]
) -> None:
    check(shares, np.array(logits, np.float32), words, options)


def test_several_outputs(shares: Shares) -> None:
    check_several(shares)


def test_errors_are_the_same(shares: Shares) -> None:
    for value, text in ((np.nan, "no numbers"), (-np.inf, "no token can come next")):
        for words in (7, 1100, 2000):
            for k in (1, 9):
                logits = np.full((1, 3000), value, np.float32)
                logits[0, 0] = -np.inf
                got = drawn({"top_k": k}, shares.scores(logits, TopK(k, words)), words)
                assert got == drawn({"top_k": k}, Scores(logits), words)
                assert text in got


@pytest.mark.parametrize("where", [0, 1000, 1500])
def test_what_is_no_number_is_seen_wherever_it_is(shares: Shares, where: int) -> None:
    logits = np.full((1, 3000), np.inf, np.float32)
    logits[0, where] = np.nan
    for k in (1, 9):
        assert "no numbers" in drawn({"top_k": k}, shares.scores(logits, TopK(k, 2000)), 2000)


def test_outputs_of_batches_are_joined(shares: Shares) -> None:
    logits = np.random.default_rng(1).standard_normal((2, 3000)).astype(np.float32)
    for top in (None, TopK(4, 3000)):
        both = shares.scores(logits, top)
        parts = joined([shares.scores(logits[:1], top), shares.scores(logits[1:], top)])
        for want, got in zip(both, parts, strict=True):
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    ("options", "needs"),
    [
        ({}, 40),
        ({"top_k": np.int64(MOST_K)}, MOST_K),
        ({"top_k": MOST_K + 1}, 0),
        ({"top_k": 0}, 0),
        ({"temp": 0.0}, 1),
        ({"temp": 0.0, "top_k": 0}, 1),
        ({"temp": 0.0, "xtc_probability": 0.5}, 40),
        ({"repeat_penalty": 1.1}, 0),
        ({"presence_penalty": 0.1}, 0),
        ({"frequency_penalty": -0.1}, 0),
        ({"dry_multiplier": 0.8}, 0),
        ({"top_n_sigma": 1.0}, 0),
        ({"logit_bias": {3: 1.0}}, 0),
    ],
)
def test_what_a_sampler_needs(options: dict[str, Any], needs: int) -> None:
    assert Sampler(SamplingOptions(**options)).needs == needs


# ---------------------------------------------------------------- texts of models

SAMPLING = [{"temp": 0.0}, {"temp": 1.5, "seed": 3}, {"top_k": 5, "typical": 0.7, "temp": 2.0, "seed": 4}]
VOCAB, WORDS = 5000, 4200


def with_equals(path: Path) -> Path:
    """A model with each row of the output matrix several times, the largest for ids that are no words."""
    model, rng = Tiny(vocab=VOCAB), np.random.default_rng(5)
    rows = model.tensors()["output.weight"][rng.integers(0, VOCAB // 4, VOCAB)]
    rows[WORDS:] *= 4
    return Tiny(vocab=VOCAB, more={"output.weight": rows}).write(path)


def texts(llm: LLM) -> list[list[int]]:
    return [list(islice(llm.generate_tokens([1, 2, 3], **options), 12)) for options in SAMPLING]


@pytest.mark.parametrize("kind", ["none", "layer 2", "row 2", "row 3", "everything"])
@pytest.mark.parametrize("names", [CPUS, EMULATED, MIXED], ids=["cpu", "emulated", "mixed"])
def test_texts_are_the_same(
    kind: str, names: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, tops = with_equals(tmp_path / "model.gguf"), set[TopK | None]()
    init = Outputs.__init__
    monkeypatch.setattr(
        Outputs, "__init__", lambda self, b, *args: (tops.add(b.top), init(self, b, *args))[1]
    )
    monkeypatch.setattr(LLM, "_words", WORDS)
    monkeypatch.setattr(engine_module, "_FEW_LOGITS", VOCAB - 1)
    with closing(LLM(path, plan=Plans(GGUF(path), names)[kind], threads=2, n_ubatch=2)) as llm:
        few = texts(llm)
        assert max(map(max, few)) < WORDS
        assert tops == {TopK(k, WORDS) for k in (1, 64, 8)}  # of powers of two there are few
        tops.clear()
        monkeypatch.setattr(Sampler, "needs", 0)
        assert texts(llm) == few
        assert tops == {None}


def test_of_few_logits_all_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "_FEW_LOGITS", VOCAB)
    with closing(LLM(with_equals(tmp_path / "model.gguf"), n_ctx=64, threads=1)) as llm:
        assert llm._engine.evaluate([1], top=TopK(3, WORDS)).logits.shape == (1, VOCAB)
