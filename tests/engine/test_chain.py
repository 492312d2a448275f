"""The sampler from end to end, against llama.cpp's chain written down a second time, link by link."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ggrun import LLM, SamplingOptions
from ggrun.engine.sampler import Sampler
from tests.tiny import Tiny

VOCAB = 10
TEXTS = ["a", "b", "c", "d", "e\n", "f", "g", "h", "i", "j"]  # token 4 is a breaker
OFF = SamplingOptions(temp=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=1)

Chances = dict[int, float]


# ---------------------------------------------------------------- the chain, a second time


def softmax(logits: Chances) -> Chances:
    most = max(logits.values())
    weights = {t: math.exp(x - most) for t, x in logits.items()}
    return {t: w / sum(weights.values()) for t, w in weights.items()}


def penalties(logits: Chances, history: list[int], o: SamplingOptions) -> Chances:
    window = history if o.repeat_last_n < 0 else history[-o.repeat_last_n :] if o.repeat_last_n else []
    out = dict(logits)
    for t in set(window):
        x = logits[t] * o.repeat_penalty if logits[t] <= 0 else logits[t] / o.repeat_penalty
        out[t] = x - window.count(t) * o.frequency_penalty - o.presence_penalty
    return out


def dry(logits: Chances, history: list[int], o: SamplingOptions) -> Chances:
    n = o.dry_penalty_last_n
    window = history if n < 0 else history[-n:] if n else []
    out = dict(logits)
    for t in logits if o.dry_multiplier else ():
        best = -1
        for length in range(1, len(window)):
            end = window[-length:]
            if any(b in TEXTS[token] for token in end for b in o.dry_sequence_breakers):
                break
            if any(window[i : i + length + 1] == [*end, t] for i in range(len(window) - length)):
                best = length
        if best >= o.dry_allowed_length:
            out[t] -= o.dry_multiplier * o.dry_base ** (best - o.dry_allowed_length)
    return out


def shortest(order: Sequence[int], chances: Chances, mass: float) -> set[int]:
    """The first of them that together have this mass."""
    kept: set[int] = set()
    for t in order:
        kept.add(t)
        if sum(chances[k] for k in kept) >= mass:
            break
    return kept


def only(logits: Chances, kept: set[int]) -> Chances:
    return {t: x for t, x in logits.items() if t in kept}


def filters(logits: Chances, o: SamplingOptions) -> Chances:
    if o.top_n_sigma > 0:
        least = max(logits.values()) - o.top_n_sigma * float(np.std(list(logits.values())))
        logits = {t: x for t, x in logits.items() if x >= least}
    if o.top_k > 0:
        logits = only(logits, set(sorted(logits, key=lambda t: -logits[t])[: o.top_k]))
    p = softmax(logits)
    if o.typical < 1:
        entropy = -sum(q * math.log(q) for q in p.values())
        logits = only(logits, shortest(sorted(p, key=lambda t: abs(-math.log(p[t]) - entropy)), p, o.typical))
    p = softmax(logits)
    if o.top_p < 1:
        logits = only(logits, shortest(sorted(p, key=lambda t: -p[t]), p, o.top_p))
    p = softmax(logits)
    logits = only(logits, {t for t in p if p[t] >= o.min_p * max(p.values())})
    p = softmax(logits)
    above = sorted((t for t in p if p[t] >= o.xtc_threshold), key=lambda t: -p[t])
    if o.xtc_probability == 1.0 and o.xtc_threshold <= 0.5:
        logits = only(logits, set(logits) - set(above[:-1]))
    return logits


def expected(logits: np.ndarray, history: list[int], o: SamplingOptions) -> Chances:
    """The probability of each token."""
    values = {t: float(x) + o.logit_bias.get(t, 0.0) for t, x in enumerate(logits)}
    left = filters(dry(penalties(values, history, o), history, o), o)
    if o.temp <= 0:
        return {max(left, key=lambda t: left[t]): 1.0}
    return softmax({t: x / o.temp for t, x in left.items()})


def chances(logits: np.ndarray, history: list[int], o: SamplingOptions) -> Chances:
    sampler = Sampler(o, TEXTS.__getitem__)
    sampler.accept(history[: len(history) // 2])
    for token in history[len(history) // 2 :]:
        sampler.accept_sampled(token)
    c = sampler.candidates(logits)
    return dict(zip(c.ids.tolist(), c.probabilities().tolist(), strict=True))


def agree(a: Chances, b: Chances) -> bool:
    return a.keys() == b.keys() and all(abs(a[t] - b[t]) < 1e-5 for t in a)


# ---------------------------------------------------------------- the tests

LINKS: dict[str, list[dict[str, Any]]] = {
    "penalties": [{"repeat_penalty": 1.5}, {"frequency_penalty": 0.4}, {"presence_penalty": 0.7}],
    "bias": [{"logit_bias": {2: 1.5, 7: -1.0}}],
    "dry": [{"dry_multiplier": 0.8, "dry_allowed_length": 1}],
    "top_n_sigma": [{"top_n_sigma": 1.6}],
    "top_k": [{"top_k": 6}, {"top_k": 3}],
    "typical": [{"typical": 0.8}, {"typical": 0.4}],
    "top_p": [{"top_p": 0.85}, {"top_p": 0.5}],
    "min_p": [{"min_p": 0.1}, {"min_p": 0.3}],
    "xtc": [{"xtc_probability": 1.0, "xtc_threshold": 0.12}],
    "temperature": [{"temp": 0.6}, {"temp": 1.7}, {"temp": 0.0}, {"temp": -1.0}],
}


def cases(n: int) -> list[tuple[np.ndarray, list[int]]]:
    rng = np.random.default_rng(3)
    return [
        (1.5 * rng.standard_normal(VOCAB).astype(np.float32), (rng.integers(0, 5, 25) % 5).tolist())
        for _ in range(n)
    ]


@pytest.mark.parametrize("link", LINKS)
def test_every_link_alone(link: str) -> None:
    for change in LINKS[link]:
        o = replace(OFF, **change)
        moved = 0
        for logits, history in cases(40):
            want = expected(logits, history, o)
            assert agree(chances(logits, history, o), want), (change, logits, history)
            moved += not agree(want, expected(logits, history, OFF))
        assert moved > 10, change  # so that a link that does nothing would be seen


def test_the_links_follow_each_other() -> None:
    rng = np.random.default_rng(4)
    for logits, history in cases(600):
        change: dict[str, Any] = {}
        for link in LINKS.values():
            if rng.random() < 0.6:
                change |= link[rng.integers(len(link))]
        o = replace(OFF, **change)
        assert agree(chances(logits, history, o), expected(logits, history, o)), (change, logits, history)


def test_the_defaults_are_a_chain() -> None:
    o = SamplingOptions(seed=1)
    assert (o.temp, o.top_k, o.top_p, o.min_p) == (0.8, 40, 0.95, 0.05)
    for logits, history in cases(40):
        assert agree(chances(logits, history, o), expected(logits, history, o))


@pytest.mark.parametrize("n", [0, 1, 3, 64, -1])
def test_how_far_penalties_look_back(n: int) -> None:
    history = [0] * 100 + [1, 2, 3, 4, 5, 6, 1, 2]
    logits = cases(1)[0][0]
    for change in (
        {"presence_penalty": 2.0, "repeat_last_n": n},
        {"dry_multiplier": 2.0, "dry_penalty_last_n": n},
    ):
        o = replace(OFF, **change)
        assert agree(chances(logits, history, o), expected(logits, history, o))


def test_breakers_end_repetitions() -> None:
    logits, history = np.zeros(VOCAB, np.float32), [0, 1, 4, 2, 3, 9, 0, 1, 4, 2]
    unbroken = replace(OFF, dry_multiplier=1.0, dry_allowed_length=2, dry_sequence_breakers=())
    assert chances(logits, history, unbroken)[3] < 0.05
    assert chances(logits, history, replace(unbroken, dry_sequence_breakers=("\n",)))[3] == pytest.approx(0.1)


def test_xtc_comes_as_often_as_it_should() -> None:
    sampler = Sampler(replace(OFF, xtc_probability=0.3, xtc_threshold=0.1))
    logits = np.log(np.array([0.6, 0.3, 0.1 - 1e-6], np.float32))
    times = sum(sampler.candidates(logits).ids[0] == 1 for _ in range(3000))
    assert abs(times - 900) < 5 * math.sqrt(3000 * 0.3 * 0.7)


@pytest.mark.parametrize("temp", [0.6, 1.0, 1.7])
def test_draws_follow_the_candidates(temp: float) -> None:
    logits = cases(1)[0][0]
    o = replace(OFF, temp=temp, top_k=5)
    sampler, n = Sampler(o), 4000
    counts = np.bincount([sampler.sample(logits) for _ in range(n)], minlength=VOCAB)
    p = np.array([expected(logits, [], o).get(t, 0.0) for t in range(VOCAB)])
    assert (np.abs(counts - n * p) <= 5 * np.sqrt(n * p * (1 - p))).all()


def test_temperature_0_takes_the_best_that_the_filters_leave() -> None:
    logits = np.log(np.array([0.4, 0.3, 0.2, 0.1], np.float32))
    assert Sampler(replace(OFF, temp=0.0)).sample(logits) == 0
    assert Sampler(replace(OFF, temp=0.0, xtc_probability=1.0, xtc_threshold=0.15)).sample(logits) == 2
    assert Sampler(replace(OFF, temp=0.0, xtc_probability=1.0, xtc_threshold=0.6)).sample(logits) == 0
    typical = np.log(np.array([0.4] + [0.1] * 6, np.float32))
    assert Sampler(replace(OFF, temp=0.0, typical=0.1)).sample(typical) == 1


def test_penalties_see_the_prompt_and_what_was_sampled(tmp_path: Path) -> None:
    path = Tiny(vocab=30).write(tmp_path / "model.gguf")
    prompt = list(range(0, 30, 2))
    with LLM(path) as llm:
        options = {"temp": 0.0, "presence_penalty": 1000.0, "repeat_last_n": -1}
        tokens = list(islice(llm.generate_tokens(prompt, **options), 15))
    assert sorted(tokens) == list(range(1, 30, 2))
