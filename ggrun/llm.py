"""The public class: a model, loaded, that takes text or tokens and gives text or logits."""

import gc
import json
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from numbers import Integral
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ggrun.devices.progress import Progress, silent
from ggrun.devices.ways import check_p2p, check_sums
from ggrun.engine.engine import Engine
from ggrun.engine.generate import Context, StopStrings, Timings, generate
from ggrun.engine.grammar import Grammar, GrammarVocabulary
from ggrun.engine.meter import Meter
from ggrun.engine.perplexity import Estimate, perplexity
from ggrun.engine.sampler import Sampler, SamplingOptions
from ggrun.errors import UsageError
from ggrun.gguf import GGUF
from ggrun.plan import Plan
from ggrun.plan.options import PlanOptions
from ggrun.plan.planned import Planned
from ggrun.rpc.placed import Placed, RpcOptions, Where
from ggrun.tokens import Tokenizer, TokenizerError

_FROZEN = gc.get_freeze_count()
"""What Python itself has frozen: some of its versions do."""


@contextmanager
def _without_collecting() -> Iterator[None]:
    """Loading makes much that stays: to look for garbage in it, two hundred times, is a tenth of a start.

    What was made counts as old afterwards: it is looked at with all the rest, when there is much new.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if gc.get_freeze_count() == _FROZEN:  # what somebody has frozen must stay so
            gc.freeze()
            gc.unfreeze()
        if collecting:
            gc.enable()


class LLM:
    """A GGUF model.

    path          the file, or any one of its shards
    n_ctx         positions in the KV cache; 0: what the model was made for, or less (but FIT_CONTEXT at
                  least) where memory is short
    n_ubatch      tokens of a prompt that are computed together
    threads       of the CPU; None: one for each physical core
    devices       "cuda:0,cpu"; to try splits, CPUs that pretend to be cards: "cpu:0:2GB,cpu:1:2GB,cpu"; None:
                  all cards of this machine, and its CPU
    cache_type_k, cache_type_v
                  the form of keys and values in the cache: f16, f32, bf16 or q8_0
    all_reduce    how devices that share rows sum what they have: by copies (copy), by NCCL (nccl), or auto
    wire          what they send each other for that: f32; or bf16, half of it, which rounds, by copies
    metered       measure where the time goes, for `meter`: it costs some
    plan          where every layer runs, instead of devices and what follows
    p2p           how cards copy to each other: "on": directly; "off": through the host's memory; "auto":
                  directly where the self-test, run once, found that such copies come right
    rpc           workers on other machines: "host:port,host:port", or RpcOptions that say more. When one is
                  lost, the model is loaded without it, and the text goes on
    progress      is told how many bytes of the weights have come to cards: ("loading", done, of how many)
    placement     what is left of ggrun.plan.options.PlanOptions: split_mode, n_gpu_layers, tensor_split,
                  overrides, n_cpu_moe, op_offload, fit and others, with llama.cpp's meanings

    Whatever goes wrong is a ggrun.GgrunError whose text is one line. A model without a usable tokenizer
    loads, and takes token ids; `tokenizer` then raises the TokenizerError that says why.
    """

    @_without_collecting()
    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        n_ctx: int = 0,
        n_ubatch: int = 512,
        threads: int | None = None,
        devices: str | None = None,
        cache_type_k: str = "f16",
        cache_type_v: str = "f16",
        all_reduce: str = "auto",
        wire: str = "f32",
        metered: bool = False,
        plan: Plan | None = None,
        p2p: str = "auto",
        rpc: str | RpcOptions | None = None,
        progress: Progress = silent,
        **placement: Any,
    ) -> None:
        start = time.perf_counter()
        _check_kinds(threads, devices, plan, rpc)
        check_p2p(p2p)
        check_sums(all_reduce, wire)
        sizes = {
            "n_ctx": n_ctx,
            "n_ubatch": n_ubatch,
            "cache_type_k": cache_type_k,
            "cache_type_v": cache_type_v,
        }
        wishes = _plan_options(sizes | placement)
        self._model = GGUF(path)
        self.meter = Meter() if metered else None
        where = Where(devices, threads, plan, p2p, (all_reduce, wire), self.meter, progress)
        try:
            workers = RpcOptions(rpc) if isinstance(rpc, str) else rpc
            self._placed = Placed(self._model, wishes, where, workers)
        except BaseException:
            self._model.close()
            raise
        self.config = self.planned.facts.config
        self._context = Context(self._placed.engine, replace=self._placed.without)
        self._tokenizer = _tokenizer(self._model, self.config.vocab)
        self._load_time = time.perf_counter() - start
        self.timings = Timings(load=self._load_time)

    @property
    def n_ctx(self) -> int:
        """The positions in the KV cache."""
        return self._engine.n_ctx

    @property
    def planned(self) -> Planned:
        """The plan, and what is predicted of it; another one, when a worker was lost."""
        return self._placed.planned

    @property
    def plan(self) -> Plan:
        """Where every layer runs."""
        return self.planned.plan

    @property
    def _engine(self) -> Engine:
        return self._placed.engine

    @property
    def metadata(self) -> dict[str, Any]:
        """The file's key-value pairs."""
        return self._model.metadata

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer; TokenizerError when it has none that can be used."""
        if isinstance(self._tokenizer, TokenizerError):
            raise self._tokenizer
        return self._tokenizer

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Text to token ids. add_special: its own begin and end too; parse_special: <|names|> too."""
        return self.tokenizer.encode(text, add_special=add_special, parse_special=parse_special)

    def detokenize(self, tokens: Sequence[int], *, skip_special: bool = True) -> str:
        """Token ids to text."""
        return self.tokenizer.decode(tokens, skip_special=skip_special)

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """The logits after each of n tokens, as a text of their own: float32 [n, vocab].

        GgrunError, before anything is computed, when there is no memory for so many: see logits_by_piece.
        """
        text = self._context.text()
        ids = self._engine.check(tokens).tolist()
        return self._context.begin(text, ids, reuse=False, all_logits=True)[0].logits

    def logits_by_piece(self, tokens: Sequence[int]) -> Iterator[NDArray[np.float32]]:
        """The same, a piece of a few MiB at a time: float32 [m, vocab], the n tokens' in order."""
        return self._context.by_piece(self._context.text(), self._engine.check(tokens).tolist())

    def perplexity(
        self, text: str | Sequence[int], *, window: int = 512, chunks: int = -1
    ) -> Iterator[Estimate]:
        """How well the model foretells a text, as llama.cpp counts it: the estimate after each window.

        window    tokens of one, up to n_ctx; the second half is scored
        chunks    most windows; -1: all

        UsageError for a text of less than two windows.
        """
        known = self._tokenizer
        bos = None if isinstance(known, TokenizerError) or not known.add_bos else known.bos
        tokens = self._tokens(text)
        return perplexity(self._engine, self._context, tokens, window, chunks, bos)

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int = -1,
        stop: str | Sequence[str] = (),
        ignore_eos: bool = False,
        sampling: SamplingOptions | None = None,
        **options: Any,
    ) -> Iterator[str]:
        """Pieces of text after the prompt, as they come.

        max_tokens    -1: until the model ends or the context is full
        stop          texts that end the generation, and are not part of it
        ignore_eos    go on after an end-of-generation token; the end of a grammar is an end all the same
        sampling      or its fields as options: temp=0.7, seed=1, grammar="root ::= ...", json_schema={...}
                      (see SamplingOptions)

        `timings` has the times afterwards. Leaving the loop early is fine.
        """
        start, begun = time.perf_counter(), self._context.text()
        _check_wishes(max_tokens, stop)
        tokens = self._tokens(prompt)
        if not tokens:
            raise UsageError("an empty prompt: there is nothing to begin with")
        self._engine.check(tokens)
        o = _sampling(sampling, options)
        if ignore_eos:
            never = dict.fromkeys(self.tokenizer.eog, -math.inf)
            o = replace(o, logit_bias={**o.logit_bias, **never})
        sampler = Sampler(o, self.tokenizer.token_text, self._grammar(o))
        timings = Timings(load=self._load_time, first_token=time.perf_counter() - start)
        stops = StopStrings([stop] if isinstance(stop, str) else stop)
        ids = generate(self._context, begun, tokens, sampler, timings, self._words)
        return self._pieces(ids, max_tokens, stops, timings)

    def generate_tokens(
        self, prompt: str | Sequence[int], *, sampling: SamplingOptions | None = None, **options: Any
    ) -> Iterator[int]:
        """Token ids after the prompt, until the context is full; texts and grammars need a tokenizer."""
        text = self._context.text()
        self.timings = timings = Timings(load=self._load_time)
        o = _sampling(sampling, options)
        sampler = Sampler(o, grammar=self._grammar(o))
        return generate(self._context, text, self._tokens(prompt), sampler, timings, self._words)

    def _tokens(self, text: str | Sequence[int]) -> list[int]:
        """The ids of a text, or these; UsageError for what is neither."""
        if isinstance(text, str):
            return self.tokenize(text)
        if isinstance(text, bytes | bytearray) or not isinstance(text, Iterable):
            raise UsageError(f"{text!r:.40} is no text: a text or token ids are needed")
        return list(text)

    def _grammar(self, o: SamplingOptions) -> Grammar | None:
        if not (o.grammar or o.json_schema):
            return None
        return Grammar(self._grammar_vocabulary, o.grammar, o.json_schema)

    @cached_property
    def _grammar_vocabulary(self) -> GrammarVocabulary:
        return GrammarVocabulary(self.tokenizer)

    @property
    def _words(self) -> int:
        """How many ids are tokens of the vocabulary: of the logits, where there is no tokenizer."""
        known = self._tokenizer
        return self.config.vocab if isinstance(known, TokenizerError) else known.n_vocab

    def _pieces(
        self, ids: Iterator[int], max_tokens: int, stops: StopStrings, timings: Timings
    ) -> Iterator[str]:
        self.timings = timings
        text = self.tokenizer.stream()
        for count, token in enumerate(ids, 1) if max_tokens else ():
            if token in self.tokenizer.eog:
                break
            if piece := stops.push(text.push(token)):
                yield piece
            if stops.stopped or count == max_tokens:
                break
        if rest := stops.push(text.flush()) + stops.flush():
            yield rest

    def interrupt(self) -> None:
        """End what was begun and is not done with ggrun.Interrupted; from any thread.

        The model can be used again: what is begun later is not interrupted.
        """
        self._context.interrupt()

    def close(self) -> None:
        """Let go of the model, its threads and its memory."""
        self._placed.close()
        self._model.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _check_kinds(threads: Any, devices: Any, plan: Any, rpc: Any) -> None:
    """UsageError for what the types say, to those who do not check them."""
    whole = isinstance(threads, Integral) and not isinstance(threads, bool)
    if threads is not None and not (whole and int(threads) >= 1):
        raise UsageError(f"threads {threads!r:.40}: must be a whole number, 1 or more")
    if not isinstance(devices, str | None):
        raise UsageError(f"devices is {devices!r:.40}: it must be text, as cpu or cpu:0:2GB,cpu:1:2GB")
    if plan is not None and not isinstance(plan, Plan):
        raise UsageError(f"plan is {plan!r:.40}: it must be a ggrun.plan.Plan")
    if not isinstance(rpc, str | RpcOptions | None):
        raise UsageError(f"rpc is {rpc!r:.40}: it must be text, as host:port,host:port, or RpcOptions")


def _check_wishes(max_tokens: Any, stop: Any) -> None:
    if not isinstance(max_tokens, Integral) or max_tokens < -1:
        raise UsageError(f"max_tokens is {max_tokens!r:.40}: it must be a whole number, -1 or more")
    if not isinstance(stop, Sequence) or not all(isinstance(each, str) for each in stop):
        raise UsageError(f"stop is {stop!r:.40}: it must be a text, or a list of texts")


def _plan_options(fields: dict[str, Any]) -> PlanOptions:
    known = PlanOptions.__dataclass_fields__.keys() - {"sequences"}  # several: comes with the server
    if unknown := [name for name in fields if name not in known]:
        raise UsageError(f"unknown option {', '.join(unknown)}")
    return PlanOptions(**fields)


def _tokenizer(model: GGUF, vocab: int) -> Tokenizer | TokenizerError:
    try:
        tokenizer = Tokenizer.from_metadata(model.metadata)
    except TokenizerError as error:
        return error
    if tokenizer.n_vocab > vocab:
        return TokenizerError(f"the vocabulary has {tokenizer.n_vocab} tokens, the model {vocab}")
    return tokenizer


def _sampling(given: SamplingOptions | None, fields: dict[str, Any]) -> SamplingOptions:
    if given is not None and fields:
        raise UsageError(f"both sampling and {', '.join(fields)} are given")
    if isinstance(schema := fields.get("json_schema"), Mapping):
        fields = {**fields, "json_schema": json.dumps(schema)}
    if not isinstance(given, SamplingOptions | None):
        raise UsageError(f"sampling is {given!r:.40}: it must be ggrun.SamplingOptions")
    if unknown := [name for name in fields if name not in SamplingOptions.__dataclass_fields__]:
        raise UsageError(f"unknown option {', '.join(unknown)}")
    return given or SamplingOptions(**fields)
