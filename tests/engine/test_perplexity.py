"""Perplexity: windows, what of them is scored, the sums; an independent float64 count as oracle."""

import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ggrun import LLM, UsageError
from ggrun.bundled import demo_model
from ggrun.engine.cache import KVCache
from ggrun.engine.generate import Context
from ggrun.engine.outputs import Scores
from ggrun.engine.perplexity import Estimate, perplexity
from tests.shared import corpus

VOCAB = 11
Foretell = Callable[[list[int]], np.ndarray]


def by_chance(seen: list[int]) -> np.ndarray:
    """Logits that depend on every token seen, and on their order."""
    return (np.random.default_rng(seen).standard_normal(VOCAB) * 3).astype(np.float32)


class FakeEngine:
    """Foretells from all the tokens of its sequence; remembers what it was asked."""

    def __init__(self, foretell: Foretell = by_chance, n_ctx: int = 64, most_outputs: int = 64) -> None:
        self.foretell, self.n_ctx, self.most_outputs = foretell, n_ctx, most_outputs
        self.config, self.cache = SimpleNamespace(vocab=VOCAB), KVCache(n_ctx)
        self.seen: list[int] = []
        self.windows: list[list[int]] = []
        self.largest = 0  # rows of logits that were asked for at once

    def resume(self) -> None:
        """It is never interrupted."""

    def evaluate(
        self, tokens: Sequence[int], sequence: int = 0, all_logits: bool = False, top: None = None
    ) -> Scores:
        if self.cache.length(sequence) == 0:
            self.seen = []
            self.windows.append(self.seen)
        self.cache.extend(sequence, len(tokens))
        rows = []
        for token in tokens:
            self.seen.append(token)
            rows.append(self.foretell(self.seen))
        self.largest = max(self.largest, len(rows) if all_logits else 1)
        return Scores(np.array(rows if all_logits else rows[-1:]))


def estimates(engine: Any, tokens: list[int], window: int, chunks: int = -1, bos: int | None = None) -> list:
    return list(perplexity(engine, Context(engine), tokens, window, chunks, bos))


def surprises(logits: np.ndarray, window: list[int]) -> np.ndarray:
    """What is scored of a window, counted in float64 from the logits of its tokens."""
    wide = logits.astype(np.float64)
    chances = np.exp(wide) / np.exp(wide).sum(axis=1, keepdims=True)
    n = len(window)
    return np.array([-math.log(chances[i - 1, window[i]]) for i in range(n // 2 + 1, n)])


def counted(foretell: Foretell, windows: list[list[int]]) -> np.ndarray:
    rows = [np.array([foretell(w[: i + 1]) for i in range(len(w))]) for w in windows]
    return np.concatenate([surprises(logits, w) for logits, w in zip(rows, windows, strict=True)])


def agree(estimate: Estimate, scored: np.ndarray) -> None:
    assert estimate.count == len(scored)
    assert estimate.value == pytest.approx(math.exp(scored.mean()), rel=1e-6)
    error = scored.std() / math.sqrt(len(scored) - 1) * math.exp(scored.mean())
    assert estimate.error == pytest.approx(error, rel=1e-5)


@pytest.mark.parametrize("window", [3, 4, 7, 16])
@pytest.mark.parametrize("bos", [None, 1])
def test_windows(window: int, bos: int | None) -> None:
    tokens = [int(t) for t in np.random.default_rng(0).integers(2, VOCAB, 5 * window - 1)]
    engine = FakeEngine()
    got = estimates(engine, tokens, window, bos=bos)
    assert [(e.window, e.windows) for e in got] == [(i, 4) for i in range(1, 5)]
    want = [tokens[i * window : (i + 1) * window] for i in range(4)]
    if bos is not None:
        want = [[bos, *w[1:]] for w in want]
    # The last token is foretold, and need not be computed.
    assert engine.windows == [w[:-1] for w in want]
    scored = counted(by_chance, want)
    share = len(scored) // 4
    for i, estimate in enumerate(got, 1):
        if i * share > 1:
            agree(estimate, scored[: i * share])


def test_bounded_pieces_change_nothing() -> None:
    tokens = [int(t) for t in np.random.default_rng(1).integers(2, VOCAB, 96)]
    whole, cut = FakeEngine(), FakeEngine(most_outputs=4)
    want = estimates(whole, tokens, 32)[-1]
    got = estimates(cut, tokens, 32)[-1]
    assert (whole.largest, cut.largest) == (15, 4)
    assert (got.nll, got.nll2) == pytest.approx((want.nll, want.nll2), rel=1e-12)


def test_an_even_model_is_as_perplexed_as_it_has_words() -> None:
    engine = FakeEngine(lambda seen: np.full(VOCAB, 7.0, np.float32))
    last = estimates(engine, [1, 2, 3, 4] * 4, 8)[-1]
    assert last.value == pytest.approx(VOCAB, rel=1e-6)
    assert last.error == pytest.approx(0, abs=1e-6)


def test_chances_beyond_what_numbers_hold() -> None:
    # Exponentials of such logits overflow; what is never chosen may be minus infinity.
    row = np.full(VOCAB, -np.inf, np.float32)
    row[[2, 3]] = 3e4, 3e4 - 1
    sure = estimates(FakeEngine(lambda seen: row), [2] * 32, 16)[-1]
    assert sure.value == pytest.approx(1 + math.exp(-1), rel=1e-6)
    assert estimates(FakeEngine(lambda seen: row), [5] * 32, 16)[-1].value == math.inf
    row = row.clip(0)
    assert estimates(FakeEngine(lambda seen: row), [5] * 32, 16)[-1].value == math.inf


def test_a_single_token_has_no_error() -> None:
    assert math.isnan(estimates(FakeEngine(), [1] * 6, 3, chunks=1)[-1].error)


@pytest.mark.parametrize(
    ("n", "window", "chunks", "words"),
    [
        (15, 8, -1, ["15 tokens", "needs 16", "-c"]),
        (0, 8, -1, ["0 tokens"]),
        (99, 2, -1, ["2 tokens", "3 or more"]),
        (999, 65, -1, ["65 tokens", "holds 64"]),
        (99, 8, 0, ["chunks 0"]),
    ],
)
def test_what_cannot_be_scored_is_refused_at_once(n: int, window: int, chunks: int, words: list[str]) -> None:
    engine: Any = FakeEngine()
    with pytest.raises(UsageError) as error:
        perplexity(engine, Context(engine), [1] * n, window, chunks, None)
    assert all(word in str(error.value) for word in words)
    assert engine.windows == []


def test_most_chunks() -> None:
    assert len(estimates(FakeEngine(), [1] * 40, 8, chunks=3)) == 3
    assert len(estimates(FakeEngine(), [1] * 40, 8, chunks=30)) == 5


@pytest.fixture(scope="module")
def tale() -> str:
    return (corpus() / "fairy-tales.txt").read_text(encoding="utf-8")[100_000:110_000]


def test_the_demo_model_on_a_tale(tale: str) -> None:
    with LLM(demo_model(), n_ctx=512, n_ubatch=128) as llm:
        tokens, scored = llm.tokenize(tale), []
        got = list(llm.perplexity(tale, chunks=3))
        for i, estimate in enumerate(got):
            window = [llm.tokenizer.bos, *tokens[512 * i + 1 : 512 * (i + 1)]]
            scored.append(surprises(llm.logits(window), window))
            agree(estimate, np.concatenate(scored))
        # Given as tokens it is the same text.
        assert next(llm.perplexity(tokens, chunks=3)) == got[0]
    assert len(got) == 3
    assert got[-1].value < 100


def test_a_text_between_two_windows(tale: str) -> None:
    with LLM(demo_model()) as llm:
        want = list(llm.perplexity(tale, window=64, chunks=3))
        windows = llm.perplexity(tale, window=64, chunks=3)
        got = [next(windows)]
        said = "".join(llm.generate("The king ordered the", temp=0.0, max_tokens=3))
        assert [*got, *windows] == want
        assert said == "".join(llm.generate("The king ordered the", temp=0.0, max_tokens=3))
