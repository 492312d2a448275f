"""A loaded model: tokens of sequences in, logits out, through a KV cache."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ggrun.arch.config import Config
from ggrun.devices.base import Device, Limits
from ggrun.devices.best import TopK
from ggrun.engine.batch import Batch
from ggrun.engine.cache import KVCache, pages_for
from ggrun.engine.hosts import Host
from ggrun.engine.meter import Meter
from ggrun.engine.outputs import Scores, joined
from ggrun.engine.pipeline import Pipeline
from ggrun.engine.runner import CacheSpec, check_memory
from ggrun.errors import UsageError
from ggrun.gguf import GGUF
from ggrun.plan import Plan

CACHE_KINDS = ("f16", "f32", "bf16", "q8_0")
_LOGITS_BYTES = 64 << 20
"""How much memory the logits of one run may take."""
_FEW_LOGITS = 1 << 15
"""So many come to the host sooner than the best of them are found."""


@dataclass(frozen=True)
class EngineOptions:
    """The sizes that a user chooses; see docs of LLM."""

    n_ctx: int
    n_ubatch: int = 512
    sequences: int = 1
    cache_keys: str = "f16"
    cache_values: str = "f16"


class Engine:
    """Evaluates tokens. A sequence is a number below options.sequences.

    hosts    the other machines of the plan, by name
    meter    measures where the time goes, if there is one
    """

    def __init__(
        self,
        model: GGUF,
        config: Config,
        plan: Plan,
        devices: dict[str, Device],
        options: EngineOptions,
        hosts: Mapping[str, Host] | None = None,
        meter: Meter | None = None,
    ) -> None:
        self.config, self.options = config, options
        self._devices = tuple(devices.values())
        spec = CacheSpec(pages_for(options.n_ctx), options.cache_keys, options.cache_values, plan.kv_on_host)
        plan.check(config)
        check_memory(plan, devices, config, spec)
        self.cache = KVCache(options.n_ctx, options.sequences)
        self._step = min(options.n_ubatch, options.n_ctx)
        self._most_outputs = max(1, min(self._step, _LOGITS_BYTES // (4 * config.vocab)))
        limits = Limits(self._step, self._most_outputs, options.sequences, self.cache.pages)
        self._pipeline = Pipeline(plan, devices, model, config, spec, limits, hosts, meter)

    @property
    def n_ctx(self) -> int:
        """The most positions of all sequences together."""
        return self.options.n_ctx

    def decode(
        self, tokens: Sequence[int], sequence: int = 0, all_logits: bool = False
    ) -> NDArray[np.float32]:
        """Append tokens to a sequence; the logits after the last, or after each: float32 [1 or n, vocab].

        Errors as `evaluate` has them.
        """
        return self.evaluate(tokens, sequence, all_logits).logits

    def evaluate(
        self, tokens: Sequence[int], sequence: int = 0, all_logits: bool = False, top: TopK | None = None
    ) -> Scores:
        """Append tokens to a sequence; the logits after the last, or after each.

        top: the best are enough; more of them may come, or all

        Long prompts are cut into micro-batches. UsageError for a token that the vocabulary does not have,
        CacheFull when the context is; both change nothing.
        """
        begin = self.cache.length(sequence)
        ids = self.check(tokens, begin)
        if top:  # few values of k, as devices prepare for each
            many = self.config.vocab > _FEW_LOGITS
            top = TopK(1 << (top.k - 1).bit_length(), top.words) if many else None
        try:
            slots = self.cache.extend(sequence, len(ids))
            outputs = np.zeros(len(ids), np.bool_)
            outputs[0 if all_logits else -1 :] = True
            parts = self._pipeline.run(
                [
                    self._batch(ids, slots, outputs, sequence, begin, part, top)
                    for part in self._cuts(len(ids), all_logits)
                ]
            )
        except BaseException:
            self.cache.truncate(sequence, begin)
            raise
        return joined(parts)

    def interrupt(self) -> None:
        """Make `decode` end with Interrupted, now and until `resume`; from any thread."""
        for device in self._devices:
            device.interrupt()
        self._pipeline.interrupt()

    def resume(self) -> None:
        """Let `decode` work again."""
        for device in self._devices:
            device.resume()
        self._pipeline.resume()

    def check(self, tokens: Sequence[int], begin: int = 0) -> NDArray[np.int32]:
        """The tokens as an array; UsageError when they cannot follow `begin` others in a sequence."""
        ids = np.asarray(tokens)
        if ids.ndim != 1 or (len(ids) and ids.dtype.kind not in "iu"):
            raise UsageError("tokens must be a sequence of whole numbers")
        wrong = ids[(ids < 0) | (ids >= self.config.vocab)]
        if len(wrong):
            raise UsageError(f"token {wrong[0]} is not in the vocabulary of {self.config.vocab}")
        if not len(ids):
            raise UsageError("no tokens to evaluate")
        if begin + len(ids) > self.n_ctx:
            raise UsageError(
                f"the prompt has {begin + len(ids)} tokens, the context holds {self.n_ctx}: "
                "give a larger one with -c"
            )
        return ids.astype(np.int32)

    def _cuts(self, n: int, all_logits: bool) -> list[slice]:
        step = self._most_outputs if all_logits else self._step
        return [slice(i, min(i + step, n)) for i in range(0, n, step)]

    def _batch(
        self,
        ids: NDArray[np.int32],
        slots: NDArray[np.int32],
        outputs: NDArray[np.bool_],
        sequence: int,
        begin: int,
        part: slice,
        top: TopK | None = None,
    ) -> Batch:
        n = part.stop - part.start
        positions = np.arange(begin + part.start, begin + part.stop, dtype=np.int32)
        sequences = np.full(n, sequence, np.int32)
        tables = {sequence: self.cache.table(sequence).copy()}
        return Batch(ids[part], positions, sequences, slots[part], outputs[part], tables, top)
