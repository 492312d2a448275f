"""From logits to a token: llama.cpp's chain of samplers, with its order, defaults and meanings.

Penalties and biases change the logits of known tokens and work on the whole vocabulary; then filters narrow
down the candidates; the temperature and a seeded draw come last.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ggrun.errors import GgrunError, UsageError

if TYPE_CHECKING:
    from ggrun.engine.grammar import Grammar

Logits = NDArray[np.float32]


@dataclass(frozen=True)
class SamplingOptions:
    """How the next token is chosen. What is 0 (or 1 for top_p, typical and repeat_penalty) is off."""

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

    def check(self) -> None:
        """UsageError for values that make no sense."""
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


@dataclass(frozen=True)
class Candidates:
    """Tokens that may be chosen, the most probable first."""

    ids: NDArray[np.intp]
    logits: Logits

    def keep(self, which: NDArray[np.bool_] | slice) -> "Candidates":
        """Some of them (the first, if that were none)."""
        ids = self.ids[which]
        return Candidates(ids, self.logits[which]) if len(ids) else self.keep(slice(1))

    def probabilities(self, temperature: float = 1.0) -> NDArray[np.float64]:
        """Softmax."""
        p = np.exp((self.logits.astype(np.float64) - self.logits[0]) / temperature)
        return np.asarray(p / p.sum())


# ---------------------------------------------------------------- what changes logits


def penalize(logits: Logits, recent: Sequence[int], o: SamplingOptions) -> None:
    """Make recent tokens less likely: divided by repeat_penalty, less presence and count * frequency (Keskar
    2019)."""
    if not recent or (o.repeat_penalty == 1.0 and o.presence_penalty == 0.0 and o.frequency_penalty == 0.0):
        return
    counts = Counter(recent)
    ids, n = np.array(list(counts)), np.array(list(counts.values()))
    old = logits[ids]
    repeated = np.where(old <= 0, old * o.repeat_penalty, old / o.repeat_penalty)
    logits[ids] = repeated - n * o.frequency_penalty - o.presence_penalty


def dry(logits: Logits, recent: Sequence[int], breakers: frozenset[int], o: SamplingOptions) -> None:
    """Don't Repeat Yourself (p-e-w 2024): a token that would prolong a repetition of `length` loses
    multiplier * base ^ (length - allowed_length). Repetitions do not reach across breaker tokens.
    """
    if not recent or recent[-1] in breakers:
        return
    longest: dict[int, int] = {}
    for end in range(len(recent) - 1):
        length = _common_suffix(recent, end + 1, breakers)
        if length >= o.dry_allowed_length:
            token = recent[end + 1]
            longest[token] = max(longest.get(token, 0), length)
    for token, length in longest.items():
        # An exponent beyond this is a certain refusal, and would overflow.
        exponent = min(length - o.dry_allowed_length, 128)
        logits[token] -= o.dry_multiplier * o.dry_base**exponent


def _common_suffix(tokens: Sequence[int], end: int, breakers: frozenset[int]) -> int:
    """How many tokens before `end` are those at the very end."""
    length = 0
    while length < end and tokens[end - 1 - length] == tokens[-1 - length] not in breakers:
        length += 1
    return length


# ---------------------------------------------------------------- what narrows down the candidates


def top_candidates(logits: Logits, o: SamplingOptions) -> Candidates:
    """top_n_sigma (Tang et al. 2024), then top_k: the best, sorted."""
    ids = np.arange(len(logits))
    if o.top_n_sigma > 0:
        finite = logits[np.isfinite(logits)]
        ids = np.flatnonzero(logits >= finite.max() - o.top_n_sigma * finite.std())
    if 0 < o.top_k < len(ids):
        ids = ids[np.argpartition(-logits[ids], o.top_k - 1)[: o.top_k]]
    ids = ids[np.argsort(-logits[ids], kind="stable")]
    return Candidates(ids, logits[ids])


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
    return c.keep(slice(int(np.searchsorted(np.cumsum(c.probabilities()), p)) + 1))


def min_p(c: Candidates, p: float) -> Candidates:
    """Those at least p times as probable as the first (Nguyen et al. 2024)."""
    return c if p <= 0.0 else c.keep(c.logits >= c.logits[0] + np.log(p))


def xtc(c: Candidates, rng: np.random.Generator, o: SamplingOptions) -> Candidates:
    """Exclude Top Choices (p-e-w 2024): now and then drop all above the threshold but the least of them."""
    if o.xtc_probability <= 0.0 or o.xtc_threshold > 0.5 or rng.random() >= o.xtc_probability:
        return c
    above = int((c.probabilities() >= o.xtc_threshold).sum())
    return c.keep(slice(above - 1, None)) if above > 1 else c


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
        options.check()
        self.options = options
        self.seed = int(np.random.SeedSequence().generate_state(1)[0]) if options.seed < 0 else options.seed
        self._rng = np.random.default_rng(self.seed)
        self._token_text, self._grammar = token_text, grammar
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

    def sample(self, logits: Logits) -> int:
        """The next token, from its logits [vocab]; GgrunError when they are no numbers."""
        o = self.options
        logits = self._biased(logits)
        if self._grammar:
            self._grammar.allow(logits)
        penalize(logits, self._recent(o.repeat_last_n), o)
        if o.dry_multiplier > 0.0:
            recent = self._recent(o.dry_penalty_last_n)
            dry(logits, recent, frozenset(t for t in set(recent) if self._breaks(t)), o)
        if o.temp <= 0.0:
            return int(logits.argmax())
        c = top_candidates(logits, o)
        c = xtc(min_p(top_p(typical(c, o.typical), o.top_p), o.min_p), self._rng, o)
        return int(self._rng.choice(c.ids, p=c.probabilities(o.temp)))

    def _biased(self, logits: Logits) -> Logits:
        """A copy with the biases added; finite from above, so that an infinite bias means always."""
        if np.isnan(logits).any():
            raise GgrunError("the model computed values that are no numbers: its file may be damaged")
        logits = logits.copy()
        for token, bias in self.options.logit_bias.items():
            if 0 <= token < len(logits):
                logits[token] += bias
        return np.minimum(logits, np.finfo(np.float32).max)

    def _recent(self, n: int) -> list[int]:
        return self._history if n < 0 else self._history[len(self._history) - min(n, len(self._history)) :]

    def _breaks(self, token: int) -> bool:
        """Whether a token's text has a sequence breaker in it."""
        if token not in self._breakers:
            text = self._token_text(token) if self._token_text else ""
            self._breakers[token] = any(b in text for b in self.options.dry_sequence_breakers)
        return self._breakers[token]
