"""Generation: the prompt in, pieces of text out, one token at a time."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

from ggrun.engine.engine import Engine
from ggrun.engine.sampler import Logits, Sampler
from ggrun.errors import GgrunError


@dataclass
class Timings:
    """Where the time of a generation went, in seconds."""

    load: float = 0.0
    prompt_tokens: int = 0  # that were evaluated; those already in the cache are not
    prompt: float = 0.0
    tokens: int = 0
    generation: float = 0.0
    first_token: float = 0.0  # from the call to the first token

    def lines(self) -> list[str]:
        """For people."""

        def rate(n: int, seconds: float) -> str:
            return f"{n} tokens, {n / seconds if seconds else 0.0:.1f} tokens/s"

        later = max(self.tokens - 1, 0)  # the first is the prompt's
        return [
            f"load          {self.load * 1e3:8.0f} ms",
            f"prompt        {self.prompt * 1e3:8.0f} ms, {rate(self.prompt_tokens, self.prompt)}",
            f"generation    {self.generation * 1e3:8.0f} ms, {rate(later, self.generation)}",
            f"first token   {self.first_token * 1e3:8.0f} ms after the prompt was given",
        ]


class Context:
    """The tokens of one sequence that are in the KV cache."""

    def __init__(self, engine: Engine, sequence: int = 0) -> None:
        self._engine, self._sequence = engine, sequence
        self.tokens: list[int] = []
        self.turn = 0  # counts the texts that were begun

    @property
    def full(self) -> bool:
        """Whether there is no room for another token."""
        return len(self.tokens) >= self._engine.n_ctx

    def clear(self) -> None:
        """Forget everything."""
        self.turn += 1
        self.tokens.clear()
        self._engine.cache.truncate(self._sequence, 0)

    def replace(self, tokens: Sequence[int]) -> tuple[Logits, int]:
        """Make the sequence these tokens: the logits after the last, and how many tokens had to be evaluated.

        What they share with the tokens before is not computed again.
        """
        self.turn += 1
        pairs = zip(self.tokens, tokens, strict=False)
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        keep = max(0, min(shared, len(tokens) - 1))  # the last is always computed: its logits are wanted
        del self.tokens[keep:]
        self._engine.cache.truncate(self._sequence, keep)
        return self.append(tokens[keep:]), len(tokens) - keep

    def append(self, tokens: Sequence[int]) -> Logits:
        """Evaluate more tokens: the logits after the last, float32 [vocab]."""
        logits: Logits = self._engine.decode(tokens, self._sequence)[-1]
        self.tokens.extend(tokens)
        return logits


def generate(
    context: Context, prompt: Sequence[int], sampler: Sampler, timings: Timings, vocab: int
) -> Iterator[int]:
    """Tokens after the prompt, until the context is full, the grammar ends or the caller stops asking.

    vocab: tokens from this id on are never chosen (some models have logits for more than there are words).
    GgrunError when another text was begun with the context in the meantime.
    """
    start = time.perf_counter()
    logits, timings.prompt_tokens = context.replace(prompt)
    turn = context.turn
    timings.prompt = time.perf_counter() - start
    sampler.accept(prompt)
    token = sampler.sample(logits[:vocab])
    timings.first_token += time.perf_counter() - start
    start = time.perf_counter()
    while True:
        timings.tokens += 1
        timings.generation = time.perf_counter() - start
        sampler.accept_sampled(token)
        yield token
        if context.full or sampler.complete:
            return
        if context.turn != turn:
            raise GgrunError("another text was begun with this model: this one cannot go on")
        token = sampler.sample(context.append([token])[:vocab])


class StopStrings:
    """Holds back text that could become a stop string, and ends at the first one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [s for s in stops if s]
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """What can be shown now. After a stop string `stopped` is set, and nothing more comes."""
        if self.stopped:
            return ""
        held = self._held + text
        ends = [at for stop in self._stops if (at := held.find(stop)) >= 0]
        if ends:
            self.stopped, self._held = True, ""
            return held[: min(ends)]
        keep = max((_overlap(held, stop) for stop in self._stops), default=0)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def flush(self) -> str:
        """What was held back, at the end of the text."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of text that begins stop."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
