"""Generation: the prompt in, pieces of text out, one token at a time."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
from numpy.typing import NDArray

from ggrun.devices.best import TopK
from ggrun.devices.threads import ProcessLock
from ggrun.engine.engine import Engine
from ggrun.engine.hosts import HostLost
from ggrun.engine.outputs import Scores
from ggrun.engine.sampler import Sampler, SamplingOptions
from ggrun.errors import GgrunError, Interrupted


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


@dataclass
class Text:
    """A text that is, was or will be in a context (see Context.text)."""

    interrupts: int  # of the context, when the text was made
    turn: int = 0  # of the context, when the text was begun


class Context:
    """The tokens of one sequence that are in the KV cache. Texts take it in turn, from any thread.

    A text that begins takes the context away from the one before, which then cannot go on: GgrunError.

    replace    gives another engine when a machine of the first is lost; the tokens are computed again there
    """

    def __init__(
        self, engine: Engine, sequence: int = 0, replace: Callable[[HostLost], Engine] | None = None
    ) -> None:
        self._engine, self._sequence, self._replace = engine, sequence, replace
        self._lost: HostLost | None = None  # and there is no other engine yet
        self._lock = ProcessLock()
        self._tokens: list[int] = []
        self._interrupts = self._turn = 0

    @property
    def size(self) -> int:
        """The most tokens of a text."""
        return self._engine.n_ctx

    def text(self) -> Text:
        """A new text, that has not begun."""
        return Text(self._interrupts)

    def interrupt(self) -> None:
        """End all texts that there are, with Interrupted; from any thread."""
        self._interrupts += 1  # before the devices are told: see _prepare
        self._engine.interrupt()

    def begin(
        self,
        text: Text,
        tokens: Sequence[int],
        *,
        reuse: bool = True,
        all_logits: bool = False,
        top: TopK | None = None,
    ) -> tuple[Scores, int]:
        """Begin a text, or begin it anew: the logits after its last token, or after each that had to be
        evaluated; and how many these were.

        reuse: what the text shares with the one before is not computed again
        top: the best logits are enough
        """
        with self._lock.here():
            self._turn += 1
            text.turn = self._turn
            pairs = zip(self._tokens, tokens, strict=False) if reuse else ()
            shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
            keep = max(0, min(shared, len(tokens) - 1))  # the last is always computed: its logits are wanted
            del self._tokens[keep:]
            self._engine.cache.truncate(self._sequence, keep)
            return self._decode(text, tokens[keep:], all_logits, top), len(tokens) - keep

    def append(
        self, text: Text, tokens: Sequence[int], *, all_logits: bool = False, top: TopK | None = None
    ) -> Scores:
        """Go on with a text: the logits after the last of its new tokens, or after each."""
        with self._lock.here():
            if text.turn != self._turn:
                raise GgrunError("another text was begun with this model: this one cannot go on")
            return self._decode(text, tokens, all_logits, top)

    def by_piece(self, text: Text, tokens: Sequence[int]) -> Iterator[NDArray[np.float32]]:
        """Begin a text anew: the logits after each of its tokens, in pieces of what one run gives."""
        step = self._engine.most_outputs
        yield self.begin(text, tokens[:step], reuse=False, all_logits=True)[0].logits
        for i in range(step, len(tokens), step):
            yield self.append(text, tokens[i : i + step], all_logits=True).logits

    def _decode(self, text: Text, tokens: Sequence[int], all_logits: bool, top: TopK | None) -> Scores:
        while True:
            try:
                self._prepare(text)
                scores = self._engine.evaluate(tokens, self._sequence, all_logits, top)
                break
            except HostLost as lost:
                if self._replace is None:
                    raise
                self._lost = lost
        self._tokens.extend(tokens)
        return scores

    def _prepare(self, text: Text) -> None:
        """Let the engine compute. After a loss: another one, with the tokens that are in the context."""
        if self._lost and self._replace:
            self._check(text)
            self._engine = self._replace(self._lost)  # its error is tried again
            self._lost = None
        # An interrupt that resume takes back, or that an engine got which is no more, was counted before;
        # of one that comes later the devices know. So none is lost, whatever Python does when it comes.
        self._engine.resume()
        self._check(text)
        if missing := self._tokens[self._engine.cache.length(self._sequence) :]:
            self._engine.decode(missing, self._sequence)

    def _check(self, text: Text) -> None:
        if text.interrupts != self._interrupts:
            raise Interrupted("the computation was interrupted")


def usual_top(words: int) -> TopK:
    """What a text with the default options needs of a run: whoever times runs wants no more either."""
    return TopK(SamplingOptions().top_k, words)


def generate(
    context: Context, text: Text, prompt: Sequence[int], sampler: Sampler, timings: Timings, vocab: int
) -> Iterator[int]:
    """Tokens after the prompt, until the context is full, the grammar ends or the caller stops asking.

    vocab: tokens from this id on are never chosen (some models have logits for more than there are words).
    GgrunError when another text was begun with the context in the meantime.
    """
    start = time.perf_counter()
    top = TopK(sampler.needs, vocab) if sampler.needs else None
    scores, timings.prompt_tokens = context.begin(text, prompt, top=top)
    timings.prompt = time.perf_counter() - start
    sampler.accept(prompt)
    token = sampler.sample(*scores.last(vocab))
    timings.first_token += time.perf_counter() - start
    while True:
        timings.tokens += 1
        sampler.accept_sampled(token)
        yield token
        # The text's own length counts: what is in the context may be another one by now.
        if sampler.complete or len(prompt) + timings.tokens > context.size:
            return
        start = time.perf_counter()  # the time that the reader takes is not ours
        token = sampler.sample(*context.append(text, [token], top=top).last(vocab))
        timings.generation += time.perf_counter() - start


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
