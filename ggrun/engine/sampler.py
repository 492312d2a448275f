"""From logits to a token: llama.cpp's chain of samplers, with its order, defaults and meanings.

Penalties and biases change the logits of known tokens and work on the whole vocabulary; then filters
narrow down the candidates; the temperature and a seeded draw come last.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from math import isfinite, isinf, isnan, log
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ggrun.devices.best import MOST_K, best_of
from ggrun.errors import GgrunError, UsageError

if TYPE_CHECKING:
    from ggrun.engine.grammar import Grammar

Logits = NDArray[np.float32]
FLOAT_MAX = np.finfo(np.float32).max
_COLD = 1e-260
"""A temperature that leaves only the best; with lower ones numbers would be too large."""
FLOAT_MAX_LOG = 88.7228391
"""The logarithm of the largest float32: llama.cpp's bound for DRY's penalty."""


@dataclass(frozen=True)
class SamplingOptions:
    """How the next token is chosen. What is 0 (or 1 for top_p, typical and repeat_penalty) is off.

    UsageError for values that make no sense.
    """

    temp: float = 0.8  # 0 or less: always the most probable token
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical: float = 1.0
    top_n_sigma: float = -1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    repeat_last_n: int = 64  # -1: the whole context
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    grammar: str = ""  # GBNF; "": any text
    json_schema: str = ""
    seed: int = -1  # -1: a new one every time

    def __post_init__(self) -> None:
        self._check_kinds()
        for name in ("top_p", "min_p", "typical", "xtc_probability", "xtc_threshold"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UsageError(f"{name} is {getattr(self, name)}: it must be between 0 and 1")
        for name in ("repeat_last_n", "dry_penalty_last_n", "seed"):
            if getattr(self, name) < -1:
                raise UsageError(f"{name} is {getattr(self, name)}: it must be -1 or more")
        if self.grammar and self.json_schema:
            raise UsageError("both a grammar and a JSON schema are given: there can be only one")
        if not self.repeat_penalty > 0.0:
            raise UsageError(f"repeat_penalty is {self.repeat_penalty}: it must be more than 0")

    def _check_kinds(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if f.type is float and not _finite(value):
                raise UsageError(f"{f.name} is {value!r:.40}: it must be a finite number")
            if f.type is int and not isinstance(value, Integral):
                raise UsageError(f"{f.name} is {value!r:.40}: it must be a whole number")
            if f.type is str and not isinstance(value, str):
                raise UsageError(f"{f.name} is {value!r:.40}: it must be text")
        biases: Any = self.logit_bias
        for token, bias in biases.items() if isinstance(biases, Mapping) else [("?", biases)]:
            if not isinstance(token, Integral) or not (_finite(bias) or bias in (np.inf, -np.inf)):
                raise UsageError(f"logit_bias {token!r:.20}: {bias!r:.20}: it must be a number for a token")
        breakers: Any = self.dry_sequence_breakers
        if not isinstance(breakers, tuple | list) or not all(isinstance(b, str) for b in breakers):
            raise UsageError(f"dry_sequence_breakers is {breakers!r:.40}: it must be a list of texts")


def _finite(value: Any) -> bool:
    try:
        return isinstance(value, Real) and isfinite(value)
    except OverflowError:  # a whole number beyond all floats
        return False


class Candidates(NamedTuple):
    """Tokens that may be chosen, the most probable first; all logits are finite, as inf is FLOAT_MAX."""

    ids: NDArray[np.integer[Any]]
    logits: NDArray[np.float64]

    def keep(self, which: NDArray[np.bool_] | slice) -> "Candidates":
        """Some of them (the first, if that were none)."""
        ids = self.ids[which]
        return Candidates(ids, self.logits[which]) if len(ids) else self.keep(slice(1))

    def probabilities(self) -> NDArray[np.float64]:
        """Softmax."""
        p: NDArray[np.float64] = np.exp(self.logits - self.logits[0])
        p /= p.sum()
        return p


# ---------------------------------------------------------------- what changes logits


def penalize(logits: Logits, recent: Sequence[int], o: SamplingOptions) -> None:
    """Recent tokens: divided by repeat_penalty, less presence and count * frequency (Keskar 2019)."""
    # A prompt may have tokens of the padding of the vocabulary, which are never chosen.
    counts = Counter(token for token in recent if token < len(logits))
    if not counts or (o.repeat_penalty == 1.0 and o.presence_penalty == 0.0 and o.frequency_penalty == 0.0):
        return
    ids, n = np.array(list(counts)), np.array(list(counts.values()))
    with np.errstate(all="ignore"):
        old = logits[ids].astype(np.float64)
        repeated = np.where(old <= 0, old * o.repeat_penalty, old / o.repeat_penalty)
        new = repeated - n * o.frequency_penalty - o.presence_penalty
    # A penalty forbids nothing: the only token that a grammar allows stays possible.
    logits[ids] = np.where(old > -np.inf, np.clip(new, -FLOAT_MAX, FLOAT_MAX), old)


def dry(logits: Logits, recent: Sequence[int], breakers: frozenset[int], o: SamplingOptions) -> None:
    """Don't Repeat Yourself (p-e-w 2024): a token that would prolong a repetition is less likely.

    It loses multiplier * base ^ (length - allowed_length). Repetitions do not reach across breaker tokens.
    """
    backwards = recent[::-1]
    limit = next((i for i, token in enumerate(backwards) if token in breakers), len(recent))
    if limit < o.dry_allowed_length or o.dry_base < 1.0:
        return
    longest: dict[int, int] = {}
    # What ends i tokens before the end was followed by backwards[i - 1].
    for token, length in zip(backwards, _common_beginnings(backwards)[1:], strict=False):
        if (length := min(length, limit)) >= o.dry_allowed_length:
            longest[token] = max(longest.get(token, 0), length)
    most = FLOAT_MAX_LOG / log(o.dry_base) if o.dry_base > 1.000001 else np.inf
    for token, length in longest.items():
        penalty = o.dry_multiplier * o.dry_base ** min(length - o.dry_allowed_length, most)
        if token < len(logits) and logits[token] > -np.inf:  # which a penalty does not make it
            logits[token] = max(float(logits[token]) - penalty, -float(FLOAT_MAX))


def _common_beginnings(tokens: Sequence[int]) -> list[int]:
    """How many tokens from each place on are those at the very beginning (the Z-algorithm: linear)."""
    n = len(tokens)
    common = [0] * n
    begin = end = 0  # of the match that reaches farthest
    for i in range(1, n):
        length = min(end - i, common[i - begin]) if i < end else 0
        while i + length < n and tokens[length] == tokens[i + length]:
            length += 1
        common[i] = length
        if i + length > end:
            begin, end = i, i + length
    return common


# ---------------------------------------------------------------- what narrows down the candidates


def top_candidates(logits: Logits, o: SamplingOptions) -> Candidates:
    """top_n_sigma (Tang et al. 2024), then top_k: the best, sorted; of equals the first.

    GgrunError when all logits are -inf.
    """
    if o.top_n_sigma <= 0 and o.top_k > 0:
        ids = best_of(logits, o.top_k)
        return possible(logits[ids], ids)
    _check(float(logits.max()))
    ids = np.flatnonzero(logits > -np.inf)
    if o.top_n_sigma > 0 and len(ids):
        finite = np.minimum(logits[ids], FLOAT_MAX).astype(np.float64)
        ids = ids[finite >= finite.max() - o.top_n_sigma * finite.std()]
    ids = ids[best_of(logits[ids], o.top_k if o.top_k > 0 else len(ids))]
    return possible(logits[ids], ids)


def possible(logits: Logits, ids: NDArray[np.integer[Any]]) -> Candidates:
    """Those above -inf of logits that are sorted, the best first, what is no number before all.

    GgrunError when there is none, or some are no numbers.
    """
    best = logits[0] if len(logits) else -np.inf
    _check(best)
    if best == -np.inf:
        raise GgrunError("no token can come next: the model's logits and the options leave none")
    if logits[-1] == -np.inf:
        count = np.count_nonzero(logits > -np.inf)
        logits, ids = logits[:count], ids[:count]
    return Candidates(ids, np.minimum(logits, FLOAT_MAX, dtype=np.float64))


def _check(largest: float) -> None:
    if isnan(largest):
        raise GgrunError("the model computed values that are no numbers: its file may be damaged")


def typical(c: Candidates, p: float) -> Candidates:
    """Locally typical sampling (Meister et al. 2022): those whose surprise is nearest to the expected one."""
    if p >= 1.0:
        return c
    probabilities = c.probabilities()
    surprise = -np.log(np.maximum(probabilities, 1e-300))
    order = np.argsort(np.abs(surprise - (probabilities * surprise).sum()), kind="stable")
    count = int(np.searchsorted(np.cumsum(probabilities[order]), p, side="right")) + 1
    return c.keep(np.isin(np.arange(len(c.ids)), order[:count]))


def top_p(c: Candidates, p: float) -> Candidates:
    """Nucleus sampling (Holtzman et al. 2019): the fewest that together have probability p."""
    if p >= 1.0:
        return c
    return c.keep(slice(int(c.probabilities().cumsum().searchsorted(p)) + 1))


def min_p(c: Candidates, p: float) -> Candidates:
    """Those at least p times as probable as the first (Nguyen et al. 2024)."""
    return c if p <= 0.0 else c.keep(c.logits >= c.logits[0] + np.log(p))


def xtc(c: Candidates, rng: np.random.Generator, o: SamplingOptions) -> Candidates:
    """Exclude Top Choices (p-e-w 2024): now and then drop all above the threshold but the least of them."""
    if o.xtc_probability <= 0.0 or o.xtc_threshold > 0.5 or rng.random() >= o.xtc_probability:
        return c
    above = int((c.probabilities() >= o.xtc_threshold).sum())
    return c.keep(slice(above - 1, None)) if above > 1 else c


def tempered(c: Candidates, temperature: float) -> Candidates:
    """Divide by the temperature; 0 or less leaves only the best of what the filters left."""
    if temperature <= 0.0:
        return c.keep(slice(1))
    return Candidates(c.ids, (c.logits - c.logits[0]) / max(temperature, _COLD))


# ---------------------------------------------------------------- the chain


class Sampler:
    """Chooses tokens for one sequence; the same seed makes the same choices.

    `grammar` is made of the options' grammar or json_schema, by those who know the tokenizer.
    """

    def __init__(
        self,
        options: SamplingOptions,
        token_text: Callable[[int], str] | None = None,
        grammar: "Grammar | None" = None,
    ) -> None:
        self.options = self._filters = options
        if options.temp <= 0.0 and options.typical >= 1.0 and options.xtc_probability <= 0.0:
            self._filters = replace(options, top_k=1)  # nothing drops the best: no need to sort the others
        self.seed = int(np.random.SeedSequence().generate_state(1)[0]) if options.seed < 0 else options.seed
        self._rng = np.random.default_rng(self.seed)
        self._token_text, self._grammar = token_text, grammar
        # Most texts need none of these, and a look at all tokens takes time.
        penalties = (options.repeat_penalty - 1.0, options.frequency_penalty, options.presence_penalty)
        self._adjusts = any(penalties) or options.dry_multiplier > 0.0 or bool(options.logit_bias or grammar)
        self._history: list[int] = []
        self._breakers: dict[int, bool] = {}

    @property
    def complete(self) -> bool:
        """Whether the grammar has come to its end, so that there is nothing more to sample."""
        return self._grammar is not None and self._grammar.complete

    def accept(self, tokens: Iterable[int]) -> None:
        """A prompt, which is now part of the text; penalties look at it, and the grammar does not."""
        self._history.extend(tokens)

    def accept_sampled(self, token: int) -> None:
        """A token that was sampled, and is now part of the text."""
        self._history.append(token)
        if self._grammar:
            self._grammar.accept(token)

    @property
    def needs(self) -> int:
        """How many of the best logits are enough; 0: it looks at all, or at more than devices look for."""
        o = self._filters
        if self._adjusts or o.top_n_sigma > 0:
            return 0
        return int(o.top_k) if 0 < o.top_k <= MOST_K else 0

    def sample(self, logits: Logits, ids: NDArray[np.integer[Any]] | None = None) -> int:
        """The next token, from its logits [vocab]; GgrunError when they are no numbers, or all -inf.

        ids: the logits are those of these tokens, the `needs` best or more of them, sorted as Scores are
        """
        c = self.candidates(logits, ids)
        total = c.probabilities().cumsum()
        # As Generator.choice does it, which looks at much first.
        return int(c.ids[(total / total[-1]).searchsorted(self._rng.random(), side="right")])

    def candidates(self, logits: Logits, ids: NDArray[np.integer[Any]] | None = None) -> Candidates:
        """What `sample` draws from: the tokens that all links of the chain left, and how probable each is."""
        o = self._filters
        if ids is None:
            c = top_candidates(self._adjusted(logits) if self._adjusts else logits, o)
        else:
            c = possible(logits[: o.top_k], ids[: o.top_k])
        c = xtc(min_p(top_p(typical(c, o.typical), o.top_p), o.min_p), self._rng, o)
        return tempered(c, o.temp)

    def _adjusted(self, logits: Logits) -> Logits:
        """A copy with biases, grammar and penalties; at most FLOAT_MAX, for an infinite bias means always."""
        o = self.options
        _check(float(logits.max()))
        logits = np.minimum(logits, FLOAT_MAX)
        if o.logit_bias:
            self._add_biases(logits)
        if self._grammar:
            self._grammar.allow(logits)
        penalize(logits, self._recent(o.repeat_last_n), o)
        if o.dry_multiplier > 0.0:
            recent = self._recent(o.dry_penalty_last_n)
            dry(logits, recent, frozenset(t for t in set(recent) if self._breaks(t)), o)
        if np.isnan(np.max(logits)):
            raise GgrunError("the penalties make logits that are no numbers: they are too large")
        return np.minimum(logits, FLOAT_MAX, out=logits)

    def _add_biases(self, logits: Logits) -> None:
        for token, bias in self.options.logit_bias.items():
            if 0 <= token < len(logits):
                with np.errstate(over="ignore"):
                    logits[token] = bias if isinf(bias) else np.float64(logits[token]) + bias
        np.minimum(logits, FLOAT_MAX, out=logits)

    def _recent(self, n: int) -> list[int]:
        return self._history if n < 0 else self._history[len(self._history) - min(n, len(self._history)) :]

    def _breaks(self, token: int) -> bool:
        """Whether a token's text has a sequence breaker in it."""
        if token not in self._breakers:
            text = self._token_text(token) if self._token_text else ""
            self._breakers[token] = any(b in text for b in self.options.dry_sequence_breakers)
        return self._breakers[token]
