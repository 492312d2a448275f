"""The sampler chain: every link against its definition, and the seed's promise."""

import math
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggrun import GgrunError, SamplingOptions, UsageError
from ggrun.engine.sampler import (
    Candidates,
    Sampler,
    dry,
    min_p,
    penalize,
    top_candidates,
    top_p,
    typical,
    xtc,
)

OFF = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "temp": 1.0}
LOGITS = st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=60).map(
    lambda x: np.array(x, np.float32)
)


def sorted_candidates(logits: np.ndarray) -> Candidates:
    return top_candidates(logits, SamplingOptions(top_k=0))


def softmax(logits: np.ndarray) -> np.ndarray:
    p = np.exp(logits.astype(np.float64) - logits.max())
    return p / p.sum()


@given(LOGITS, st.integers(1, 70))
def test_top_k_keeps_the_largest(logits: np.ndarray, k: int) -> None:
    kept = top_candidates(logits, SamplingOptions(top_k=k))
    assert sorted(kept.logits.tolist(), reverse=True) == sorted(logits.tolist(), reverse=True)[:k]
    assert (logits[kept.ids] == kept.logits).all()
    assert (np.diff(kept.logits) <= 0).all()


@given(LOGITS, st.floats(0.01, 0.99))
def test_top_p_is_the_shortest_list_that_reaches_p(logits: np.ndarray, p: float) -> None:
    c = sorted_candidates(logits)
    kept = len(top_p(c, p).ids)
    mass = np.cumsum(c.probabilities())
    assert kept == len(c.ids) or mass[kept - 1] >= p
    assert kept == 1 or mass[kept - 2] < p


@given(LOGITS, st.floats(0.01, 1.0))
def test_min_p_compares_with_the_first(logits: np.ndarray, p: float) -> None:
    c = sorted_candidates(logits)
    probabilities = c.probabilities()
    kept = set(min_p(c, p).ids.tolist())
    clear = {
        i for i, q in zip(c.ids.tolist(), probabilities, strict=True) if q > p * probabilities[0] * (1 + 1e-5)
    }
    near = {
        i for i, q in zip(c.ids.tolist(), probabilities, strict=True) if q > p * probabilities[0] * (1 - 1e-5)
    }
    assert clear <= kept <= near | {int(c.ids[0])}


@given(LOGITS, st.floats(0.05, 0.95))
def test_typical_takes_the_least_surprising_surprises(logits: np.ndarray, p: float) -> None:
    c = sorted_candidates(logits)
    q = c.probabilities()
    with np.errstate(divide="ignore", invalid="ignore"):
        surprise = -np.log(np.maximum(q, 1e-300))
    distance = np.abs(surprise - (q * surprise).sum())
    kept = np.isin(c.ids, typical(c, p).ids)
    assert q[kept].sum() > p - 1e-9 or kept.all()
    assert kept.all() or distance[kept].max() <= distance[~kept].min() + 1e-9


def test_xtc_drops_all_above_the_threshold_but_the_least() -> None:
    c = sorted_candidates(np.log(np.array([0.4, 0.3, 0.2, 0.1], np.float32)))
    always = SamplingOptions(xtc_probability=1.0, xtc_threshold=0.15)
    assert xtc(c, np.random.default_rng(0), always).ids.tolist() == [2, 3]
    assert xtc(c, np.random.default_rng(0), SamplingOptions()).ids.tolist() == [0, 1, 2, 3]
    one = SamplingOptions(xtc_probability=1.0, xtc_threshold=0.35)
    assert xtc(c, np.random.default_rng(0), one).ids.tolist() == [0, 1, 2, 3]


def test_top_n_sigma() -> None:
    logits = np.array([10, 9, 0, 0, 0, 0, 0, 0], np.float32)
    assert top_candidates(logits, SamplingOptions(top_n_sigma=1.0)).ids.tolist() == [0, 1]


def test_penalties() -> None:
    logits = np.array([2.0, -2.0, 1.0], np.float32)
    penalize(
        logits, [0, 1, 0], SamplingOptions(repeat_penalty=2.0, frequency_penalty=0.5, presence_penalty=0.25)
    )
    assert logits.tolist() == [2.0 / 2 - 2 * 0.5 - 0.25, -2.0 * 2 - 0.5 - 0.25, 1.0]


def test_dry_punishes_what_would_go_on_repeating() -> None:
    options = SamplingOptions(dry_multiplier=1.0, dry_base=2.0, dry_allowed_length=2)
    logits = np.zeros(10, np.float32)
    dry(logits, [1, 2, 3, 4, 9, 1, 2, 3], frozenset(), options)  # "1 2 3" was followed by 4
    assert logits.tolist() == [0, 0, 0, 0, -2.0, 0, 0, 0, 0, 0]
    logits[:] = 0
    dry(logits, [1, 2, 3, 4, 9, 1, 2, 3], frozenset({2}), options)  # across the breaker only "3" repeats
    assert not logits.any()


@given(st.lists(st.integers(0, 3), max_size=40), st.frozensets(st.integers(0, 3), max_size=2))
def test_dry_against_its_definition(history: list[int], breakers: frozenset[int]) -> None:
    o = SamplingOptions(dry_multiplier=0.5, dry_base=1.5, dry_allowed_length=1)
    logits = np.zeros(4, np.float32)
    dry(logits, history, breakers, o)
    for token in range(4):
        lengths = [
            n
            for i in range(len(history) - 1)
            for n in range(1, i + 2)
            if history[i + 1] == token and history[i + 1 - n : i + 1] == history[len(history) - n :]
            if not breakers & set(history[len(history) - n :])
        ]
        want = -0.5 * 1.5 ** (max(lengths) - 1) if lengths else 0.0
        assert logits[token] == pytest.approx(want, rel=1e-5)


def test_dry_of_a_long_repetition_is_quick_and_bounded() -> None:
    logits = np.zeros(3, np.float32)
    start = time.process_time()
    dry(logits, [1] * 20_000, frozenset(), SamplingOptions(dry_multiplier=1.0))
    assert time.process_time() - start < 2.0  # quadratic would take minutes
    assert logits[0] == logits[2] == 0.0
    assert -np.inf < logits[1] < -1e38


@pytest.mark.parametrize("base", [1.0, 1.0000001, 1e308])
def test_dry_bases(base: float) -> None:
    logits = np.array([0.0, 0.0, -np.inf], np.float32)
    dry(logits, [1, 2] * 300, frozenset(), SamplingOptions(dry_multiplier=1.0, dry_base=base))
    assert -np.inf < logits[1] <= -1.0
    assert logits[2] == -np.inf
    logits = np.zeros(3, np.float32)
    dry(
        logits, [1, 2] * 300, frozenset(), SamplingOptions(dry_multiplier=1.0, dry_base=0.5)
    )  # llama.cpp: off
    assert not logits.any()


def test_a_seed_reproduces_and_seeds_differ() -> None:
    logits = np.random.default_rng(0).standard_normal((50, 100)).astype(np.float32)

    def draws(seed: int) -> list[int]:
        sampler = Sampler(SamplingOptions(seed=seed))
        return [sampler.sample(row) for row in logits]

    assert draws(7) == draws(7)
    assert draws(7) != draws(8)
    assert Sampler(SamplingOptions()).seed != Sampler(SamplingOptions()).seed


def test_draws_follow_the_probabilities() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.2], np.float32))
    sampler = Sampler(SamplingOptions(seed=1, **OFF))
    counts = np.bincount([sampler.sample(logits) for _ in range(20_000)], minlength=3)
    # Five standard deviations of a binomial count.
    assert (np.abs(counts - 20_000 * softmax(logits)) < 5 * np.sqrt(20_000 * 0.25)).all()


def test_temperature() -> None:
    logits = np.array([1.0, 3.0, 2.0], np.float32)
    assert {Sampler(SamplingOptions(temp=0.0, seed=s)).sample(logits) for s in range(20)} == {1}
    cold = Sampler(SamplingOptions(seed=1, **(OFF | {"temp": 0.05})))
    assert {cold.sample(logits) for _ in range(50)} == {1}
    hot = Sampler(SamplingOptions(seed=1, **(OFF | {"temp": 100.0})))
    assert {hot.sample(logits) for _ in range(100)} == {0, 1, 2}


def test_bias_and_infinities() -> None:
    logits = np.array([1.0, 3.0, -np.inf], np.float32)
    assert Sampler(SamplingOptions(logit_bias={0: np.inf})).sample(logits) == 0
    assert Sampler(SamplingOptions(logit_bias={1: -np.inf, 77: 1.0})).sample(logits) == 0
    with pytest.raises(GgrunError, match="no numbers"):
        Sampler(SamplingOptions()).sample(np.array([np.nan, 1.0], np.float32))


def test_nothing_is_left() -> None:
    for options in ({}, {"top_n_sigma": 1.0}, {"temp": 0.0}, {"top_k": 0}):
        with pytest.raises(GgrunError, match="no token can come next"):
            Sampler(SamplingOptions(**options)).sample(np.full(5, -np.inf, np.float32))
    with pytest.raises(GgrunError, match="no token can come next"):
        Sampler(SamplingOptions(logit_bias={0: -np.inf})).sample(np.zeros(1, np.float32))


EXTREMES = [
    {"temp": 1e-320},
    {"temp": 1e308},
    {"top_n_sigma": 1e308},
    {"top_n_sigma": 1.0, "logit_bias": {0: np.inf}},
    {"logit_bias": {2: np.inf}},
    {"logit_bias": {0: 3.4e38, 1: 1e308}},
    {"repeat_penalty": 1e308},
    {"presence_penalty": 1e308, "frequency_penalty": 1e308},
    {"presence_penalty": -1e308},
    {"dry_multiplier": 1e308, "dry_base": 1e308},
    {"typical": 0.0, "top_p": 0.0, "min_p": 1.0},
]


@pytest.mark.parametrize("extreme", EXTREMES, ids=str)
def test_extreme_values_neither_raise_nor_warn(extreme: dict[str, Any]) -> None:
    sampler = Sampler(SamplingOptions(seed=1, **extreme))
    sampler.accept([1, 1, 0, 1, 1, 1, 1, 1, 1])
    for _ in range(20):
        token = sampler.sample(np.array([1.0, 3.0, -np.inf], np.float32))
        assert token in ({2} if extreme.get("logit_bias", {}).get(2) else {0, 1})


def test_a_penalty_never_forbids_the_only_token() -> None:
    options = SamplingOptions(dry_multiplier=1e308, presence_penalty=1e308, repeat_penalty=1e308)
    sampler = Sampler(options)
    sampler.accept([1] * 300)
    assert sampler.sample(np.array([-np.inf, -5.0], np.float32)) == 1


def test_penalties_do_not_mind_tokens_beyond_the_logits() -> None:
    sampler = Sampler(SamplingOptions(temp=0.0, presence_penalty=9.0, dry_multiplier=1.0))
    sampler.accept([7, 9, 7, 9, 7, 9, 1, 7, 9, 7, 9])
    assert sampler.sample(np.array([1.0, 3.0], np.float32)) == 0


def test_penalties_that_contradict_each_other() -> None:
    sampler = Sampler(SamplingOptions(repeat_penalty=1e-308, frequency_penalty=1e308))
    sampler.accept([0] * 10)
    with pytest.raises(GgrunError, match="penalties"):
        sampler.sample(np.full(2, 3e38, np.float32))


def test_of_equals_the_first_are_kept() -> None:
    logits = np.array([1, 2, 2, 2, 3], np.float32)
    assert top_candidates(logits, SamplingOptions(top_k=3)).ids.tolist() == [4, 1, 2]
    assert Sampler(SamplingOptions(temp=0.0)).sample(np.zeros(1000, np.float32)) == 0


WRONG = [
    {"top_p": 1.5},
    {"min_p": -0.1},
    {"repeat_penalty": 0.0},
    {"seed": -2},
    {"temp": math.nan},
    {"temp": "hot"},
    {"temp": 10**400},
    {"temp": None},
    {"presence_penalty": -math.inf},
    {"frequency_penalty": math.nan},
    {"dry_base": math.inf},
    {"top_n_sigma": math.nan},
    {"typical": math.nan},
    {"top_k": 1.5},
    {"top_k": "40"},
    {"logit_bias": {5: -math.nan}},
    {"logit_bias": {"5": 1.0}},
    {"logit_bias": {5: "a"}},
    {"logit_bias": [5]},
    {"grammar": b"root"},
    {"dry_sequence_breakers": "abc"},
    {"dry_sequence_breakers": (1,)},
]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda w: str(w)[:40])
def test_values_that_make_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))) as error:
        Sampler(SamplingOptions(**wrong))
    assert "\n" not in str(error.value)


def test_numbers_of_numpy_are_numbers() -> None:
    options = SamplingOptions(
        temp=np.float32(0.0), top_k=np.int64(3), logit_bias={np.int32(1): np.float32(9)}
    )
    assert Sampler(options).sample(np.zeros(4, np.float32)) == 1
