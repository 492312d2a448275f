"""Perplexity: how well a model foretells a text, counted as llama.cpp counts it (tools/perplexity)."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ggrun.engine.engine import Engine
from ggrun.engine.generate import Context, Text
from ggrun.errors import UsageError


@dataclass(frozen=True)
class Estimate:
    """The perplexity of a text after `window` of its `windows`.

    count   tokens scored so far
    nll     the sum of their negative log-likelihoods, in nats
    nll2    the sum of the squares of these
    """

    window: int
    windows: int
    count: int = 0
    nll: float = 0.0
    nll2: float = 0.0

    @property
    def value(self) -> float:
        """The perplexity: e to the mean of the negative log-likelihoods."""
        try:
            return math.exp(self.nll / self.count)
        except OverflowError:
            return math.inf

    @property
    def error(self) -> float:
        """The perplexity times the standard error of that mean; nan for a single token."""
        if self.count < 2:
            return math.nan
        variance = self.nll2 / self.count - (self.nll / self.count) ** 2
        # Where all are alike, what is left of the difference is rounding, of either sign.
        return self.value * math.sqrt(0.0 if variance < 0 else variance / (self.count - 1))


def perplexity(
    engine: Engine, context: Context, tokens: Sequence[int], window: int, chunks: int, bos: int | None
) -> Iterator[Estimate]:
    """The estimate after each window of the text.

    The text is cut into windows; what does not fill the last is left out. Of each, the tokens after the first
    of its second half are scored, each given all those before it in the window.

    window   tokens in one
    chunks   most windows; -1: all
    bos      stands in the place of the first token of each window, where it is not None

    UsageError, before anything is computed, for a window that the context does not hold or that has nothing
    to score, and for a text of less than two windows.
    """
    if not 3 <= window <= engine.n_ctx:
        raise UsageError(f"windows of {window} tokens: they need 3 or more, the context holds {engine.n_ctx}")
    if chunks == 0:
        raise UsageError("chunks 0: nothing would be scored")
    if len(tokens) < 2 * window:
        raise UsageError(
            f"the text has {len(tokens)} tokens, perplexity with a context of {window} needs {2 * window}: "
            "give a longer one, or a smaller context with -c"
        )
    whole = len(tokens) // window
    first = [] if bos is None else [bos]
    windows = [
        [*first, *tokens[i * window + len(first) : (i + 1) * window]]
        for i in range(whole if chunks < 0 else min(chunks, whole))
    ]
    return _estimates(context, context.text(), windows, engine.most_outputs)


def _estimates(context: Context, text: Text, windows: list[list[int]], step: int) -> Iterator[Estimate]:
    count, nll, nll2 = 0, 0.0, 0.0
    for i, ids in enumerate(windows, 1):
        for scores in _scores(context, text, ids, step):
            count, nll, nll2 = count + len(scores), nll + float(scores.sum()), nll2 + float(scores @ scores)
        yield Estimate(i, len(windows), count, nll, nll2)


def _scores(context: Context, text: Text, ids: list[int], step: int) -> Iterator[NDArray[np.float64]]:
    """The negative log-likelihoods of what is scored in a window, in pieces of `step` tokens.

    Only one piece's logits are there at a time: those of a whole window of 512 may take 260 MB.
    """
    first, last = len(ids) // 2, len(ids) - 1  # the last token is foretold, and foretells nothing
    context.begin(text, ids[:first], reuse=False)
    for begin in range(first, last, step):
        end = min(begin + step, last)
        targets = ids[begin + 1 : end + 1]
        # The logits have no name here: they are gone when the next ones come.
        yield _surprise(context.append(text, ids[begin:end], all_logits=True).logits, targets)


def _surprise(logits: NDArray[np.float32], targets: Sequence[int]) -> NDArray[np.float64]:
    """The negative logarithm of each target's probability: float64 [n].

    logits   float32 [n, vocab]; they are used up: a copy of them would take longer than the sums
    """
    peaks = logits.max(axis=1, keepdims=True)
    chosen = logits[np.arange(len(logits)), targets].astype(np.float64)
    np.subtract(logits, peaks, out=logits)
    np.exp(logits, out=logits)
    # float32 is enough for the sums: no term is above 1, and numpy adds them pairwise.
    sums = logits.sum(axis=1).astype(np.float64)
    surprise: NDArray[np.float64] = np.log(sums) + peaks[:, 0] - chosen
    return surprise
