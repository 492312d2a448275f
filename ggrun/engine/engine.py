"""A loaded model: tokens of sequences in, logits out, through a KV cache."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ggrun.arch.config import Config
from ggrun.devices.base import Device, Limits
from ggrun.devices.best import TopK
from ggrun.devices.host_memory import host_memory
from ggrun.engine.batch import Batch
from ggrun.engine.cache import KVCache
from ggrun.engine.hosts import Host
from ggrun.engine.loaded import SUMS, Sums
from ggrun.engine.meter import Meter
from ggrun.engine.outputs import Scores, joined
from ggrun.engine.pipeline import Pipeline
from ggrun.engine.runner import CacheSpec
from ggrun.errors import GgrunError, Interrupted, UsageError
from ggrun.gguf import GGUF
from ggrun.plan import Plan, host_of
from ggrun.plan.offload import NONE, Offloads
from ggrun.plan.usage import Sizes

_FEW_LOGITS = 1 << 15
"""So many come to the host sooner than the best of them are found."""


class Engine:
    """Evaluates tokens. A sequence is a number below sizes.sequences.

    hosts    the other machines of the plan, by name
    meter    measures where the time goes, if there is one
    sums     how members sum what they have, see Loaded
    offloads stages of the CPU that cards compute for large batches
    """

    def __init__(
        self,
        model: GGUF,
        config: Config,
        plan: Plan,
        devices: dict[str, Device],
        sizes: Sizes,
        hosts: Mapping[str, Host] | None = None,
        meter: Meter | None = None,
        sums: Sums = SUMS,
        offloads: Offloads = NONE,
    ) -> None:
        plan.check(config)
        self.config, self._sizes = config, sizes
        self._devices = tuple(devices.values())
        self._interrupted = False
        self.most_outputs = sizes.outputs(config.vocab)
        """The most tokens of one run whose logits are all wanted."""
        # Through a network few are always sooner here.
        self._few_logits = 0 if host_of(plan.stages[-1].members[0].device) else _FEW_LOGITS
        self.cache = KVCache(sizes.n_ctx, sizes.sequences)
        spec = CacheSpec(sizes.pages, sizes.keys, sizes.values, plan.kv_on_host)
        limits = Limits(sizes.tokens, self.most_outputs, sizes.sequences, sizes.pages)
        self._pipeline = Pipeline(plan, devices, model, config, spec, limits, hosts, meter, sums, offloads)

    @property
    def n_ctx(self) -> int:
        """The most positions of all sequences together."""
        return self._sizes.n_ctx

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
        CacheFull when the context is, GgrunError where memory has no room for so many logits; all change
        nothing.
        """
        begin = self.cache.length(sequence)
        ids = self.check(tokens, begin)
        if top:  # few values of k, as devices prepare for each
            many = self.config.vocab > self._few_logits
            top = TopK(1 << (top.k - 1).bit_length(), top.words) if many else None
        logits = None if top else self._room(len(ids) if all_logits else 1)
        try:
            step = self.most_outputs if all_logits else self._sizes.tokens
            batch = self._batch(ids, sequence, begin, all_logits, top)
            parts = self._pipeline.run(batch.pieces(step), logits)
            if self._interrupted:  # when all was enqueued: a card finishes what it has got
                raise Interrupted("the computation was interrupted")
        except BaseException:
            self.cache.truncate(sequence, begin)
            raise
        return joined(parts) if logits is None else Scores(logits)

    def interrupt(self) -> None:
        """Make `decode` end with Interrupted, now and until `resume`; from any thread."""
        self._interrupted = True
        for device in self._devices:
            device.interrupt()
        self._pipeline.interrupt()

    def resume(self) -> None:
        """Let `decode` work again."""
        self._interrupted = False
        for device in self._devices:
            device.resume()
        self._pipeline.resume()

    def check(self, tokens: Sequence[int], begin: int = 0) -> NDArray[np.int32]:
        """The tokens as an array; UsageError when they cannot follow `begin` others in a sequence."""
        ids = np.asarray(tokens)
        if ids.ndim != 1 or (len(ids) and ids.dtype.kind not in "iu"):
            raise UsageError("tokens must be a sequence of whole numbers")
        for token in ids.tolist():
            if not 0 <= token < self.config.vocab:
                raise UsageError(f"token {token} is not in the vocabulary of {self.config.vocab}")
        if not len(ids):
            raise UsageError("no tokens to evaluate")
        if begin + len(ids) > self.n_ctx:
            raise UsageError(
                f"the prompt has {begin + len(ids)} tokens, the context holds {self.n_ctx}: "
                "give a larger one with -c"
            )
        return ids.astype(np.int32)

    def _room(self, n: int) -> NDArray[np.float32]:
        """Room for the logits of n tokens; GgrunError where there is not so much memory."""
        nbytes = 4 * n * self.config.vocab
        if n > self.most_outputs and nbytes > (free := host_memory().available):
            raise GgrunError(
                f"the logits of {n} tokens take {nbytes} bytes, {free} are free: "
                "take them piece by piece (LLM.logits_by_piece)"
            )
        return np.empty((n, self.config.vocab), np.float32)

    def _batch(
        self, ids: NDArray[np.int32], sequence: int, begin: int, all_logits: bool, top: TopK | None
    ) -> Batch:
        """All tokens, with room in the cache: CacheFull where there is none."""
        n, slots = len(ids), self.cache.extend(sequence, len(ids))
        positions = np.arange(begin, begin + n, dtype=np.int32)
        outputs = np.zeros(n, np.bool_)
        outputs[0 if all_logits else -1 :] = True
        tables = {sequence: self.cache.table(sequence).copy()}
        return Batch(ids, positions, np.full(n, sequence, np.int32), slots, outputs, tables, top)
