"""Generation inside a grammar or a JSON schema: which tokens may come next.

llguidance does the work (Moskal et al., github.com/guidance-ai/llguidance): an Earley parser over the bytes
of the text, which walks a trie of all tokens. It is imported only when a grammar is used.
"""

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ggrun.engine.gbnf import to_lark
from ggrun.errors import GgrunError, UsageError
from ggrun.tokens import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher

# llama.cpp's: without a limit a model that is lost would write spaces for ever.
WHITE_SPACE = r" |\n{1,2}[ \t]{0,20}"
STEP_ITEMS = 1_000_000
"""The work for one token before it counts as a runaway: about 50 ms."""
ROW_ITEMS = 20_000
"""What may be open at once: more with every turn of a rule that ends in itself. llguidance has 2000."""
STACK = 64 << 20
"""llguidance follows rules and references by recursion, up to 27 KiB for each, and a full stack ends the
process: so it reads grammars on one that holds MAX_REFERENCES, or gbnf.MAX_DEPTH rules."""
MAX_REFERENCES = 1000
_stack_size = threading.Lock()


class GrammarVocabulary:
    """What grammars need of a tokenizer. Half a second for 150,000 tokens: keep it with the model."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        from llguidance import LLTokenizer

        n = tokenizer.n_vocab
        tokens = [b"" if tokenizer.is_control(i) else tokenizer.token_bytes(i) for i in range(n)]
        # One that no model has stands in for the end where a vocabulary knows no end.
        ends = sorted(tokenizer.eog) or [n]
        words = _Words([*tokens, b""], ends)
        self.tokens = LLTokenizer(words, eos_token=ends, slices=[])  # type: ignore[arg-type]


class _Words:
    """A vocabulary in the form that llguidance reads."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokens: list[bytes], ends: list[int]) -> None:
        self.tokens, self.eos_token_id = tokens, ends[0]
        # A token of no bytes is none to llguidance; the ends are special, which no text can be.
        self.special_token_ids = ends

    def __call__(self, text: str) -> list[int]:
        """Text to tokens, which is only asked for where bytes are forced (see to_lark)."""
        return []


class Grammar:
    """One text that has to follow a grammar (GBNF), or to be JSON that follows a schema."""

    def __init__(self, vocabulary: GrammarVocabulary, grammar: str = "", json_schema: str = "") -> None:
        if grammar and json_schema:
            raise UsageError("both a grammar and a JSON schema are given: there can be only one")
        self._what = "the JSON schema" if json_schema else "the grammar"
        lark = _schema_to_lark(json_schema) if json_schema else to_lark(grammar)
        self._matcher = _on_a_deep_stack(lambda: _matcher(vocabulary, lark))
        self._check(UsageError)

    @property
    def complete(self) -> bool:
        """Whether nothing more can come but the end."""
        return self._matcher.is_stopped()

    def allow(self, logits: NDArray[np.float32]) -> None:
        """Set the logits [vocab] of what may not come next to -inf; ends may come where the grammar can end.

        GgrunError when nothing is left.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check(GgrunError)
        mask = np.unpackbits(bits, bitorder="little").view(np.bool_)[: len(logits)]
        logits[len(mask) :] = -np.inf
        logits[: len(mask)][~mask] = -np.inf
        if not np.isfinite(logits).any():
            raise GgrunError(f"{self._what}: no token of the model can come next")

    def accept(self, token: int) -> None:
        """A token that was chosen among the allowed ones."""
        self._matcher.consume_token(token)
        self._check(GgrunError)

    def _check(self, kind: type[GgrunError]) -> None:
        if self._matcher.is_error():
            raise kind(f"{self._what}: {_reason(self._matcher.get_error())}")


def _matcher(vocabulary: GrammarVocabulary, lark: str) -> "LLMatcher":
    from llguidance import LLMatcher, LLParserLimits

    limits = LLParserLimits(max_items_in_row=ROW_ITEMS, step_max_items=STEP_ITEMS, verbose_errors=False)
    matcher = LLMatcher(vocabulary.tokens, lark, log_level=0, limits=limits)
    matcher.compute_bitmask()  # some errors show up only here
    return matcher


def _on_a_deep_stack(build: Callable[[], "LLMatcher"]) -> "LLMatcher":
    with ThreadPoolExecutor(1) as pool:
        with _stack_size:
            before = threading.stack_size(STACK)
            try:
                future = pool.submit(build)
            finally:
                threading.stack_size(before)
        return future.result()


def _schema_to_lark(text: str) -> str:
    try:
        schema: Any = json.loads(text, parse_constant=_no_number)
    except ValueError as error:
        raise UsageError(f"the JSON schema is no JSON: {error}") from None
    except RecursionError:
        raise UsageError("the JSON schema is nested too deep") from None
    if not isinstance(schema, dict | bool):
        raise UsageError(f"the JSON schema is {text.strip()[:20]!r}: it must be an object, such as {{}}")
    if isinstance(schema, dict):
        schema.setdefault("x-guidance", {"whitespace_pattern": WHITE_SPACE})
    if (written := json.dumps(schema)).count('"$ref"') > MAX_REFERENCES:
        raise UsageError(f"the JSON schema has more than {MAX_REFERENCES} references")
    return f'%llguidance {{"no_forcing": true}}\nstart: %json {written}'


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON")


def _reason(error: str) -> str:
    """llguidance's message as one line."""
    lines = [line for line in map(str.strip, error.splitlines()) if line and not line.startswith("<")]
    text = " ".join(lines).split("1 | %llguidance")[0].strip()
    if text.startswith("NoExtension"):
        return "no token of the model can come next"
    if "imit" in text or "items" in text or text.startswith("panic"):
        return f"too complex ({text[:120]})"
    return text.split("failed to compile JSON schema: ")[-1] or "it cannot go on"
