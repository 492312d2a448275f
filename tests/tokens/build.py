"""Small made-up vocabularies of every kind, as the metadata of a GGUF file."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from ggrun.tokens import Tokenizer
from ggrun.tokens.pieces import _ALPHABET
from tests import shared

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
VOCABULARIES = ("deepseek-llm", "falcon", "gemma-4", "gpt-2", "llama-bpe", "llama-spm", "phi-3", "qwen2")


@cache
def real(name: str) -> Tokenizer:
    """One of llama.cpp's own vocabularies; skips the test where they are not at hand."""
    return Tokenizer.from_gguf(shared.vocab() / f"ggml-vocab-{name}.gguf")


def metadata(
    model: str,
    tokens: Sequence[tuple[str, int]],
    scores: Sequence[float] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Metadata with these (text, type) tokens; `more` are further tokenizer.ggml keys."""
    values: dict[str, Any] = {
        "model": model,
        "tokens": [text for text, _ in tokens],
        "token_type": np.array([kind for _, kind in tokens], np.int32),
        **more,
    }
    if scores is not None:
        values["scores"] = np.array(scores, np.float32)
    return {f"tokenizer.ggml.{key}": value for key, value in values.items()}


def bpe(
    *special: tuple[str, int], pre: str = "gpt-2", words: Sequence[str] = (), **more: Any
) -> dict[str, Any]:
    """GPT-2's kind: the special tokens, all bytes, and words made of their letters from left to right."""
    merges = [f"{word[:i]} {word[i]}" for word in words for i in range(1, len(word))]
    pieces = [merge.replace(" ", "") for merge in merges]
    tokens = [*special, *((text, NORMAL) for text in [*_ALPHABET, *dict.fromkeys(pieces)])]
    return metadata("gpt2", tokens, pre=pre, merges=merges, **more)


def spm(*special: tuple[str, int], words: Mapping[str, float], **more: Any) -> dict[str, Any]:
    """SentencePiece's kind: unknown, bytes, the special tokens, and pieces with their scores."""
    tokens = [("<unk>", UNKNOWN), *((text, BYTE) for text in BYTES), *special]
    tokens += [(text, NORMAL) for text in words]
    scores = [0.0] * (len(tokens) - len(words)) + list(words.values())
    return metadata("llama", tokens, scores, unknown_token_id=0, **more)


def wordpiece(*words: str) -> dict[str, Any]:
    """BERT's kind, with [UNK], [CLS] and [SEP] as its first tokens."""
    tokens = [("[UNK]", UNKNOWN), ("[CLS]", CONTROL), ("[SEP]", CONTROL), *((word, NORMAL) for word in words)]
    ids = {"unknown_token_id": 0, "bos_token_id": 1, "seperator_token_id": 2}
    return metadata("bert", tokens, **ids)


def unigram(words: Mapping[str, float], **more: Any) -> dict[str, Any]:
    """T5's kind, with <pad>, </s> and <unk> as its first tokens."""
    tokens = [("<pad>", CONTROL), ("</s>", CONTROL), ("<unk>", UNKNOWN), *((word, NORMAL) for word in words)]
    return metadata("t5", tokens, [0.0, 0.0, -20.0, *words.values()], **more)
