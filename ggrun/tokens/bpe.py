"""Byte-pair encoding with the merges of the file: GPT-2's kind and gemma 4's."""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ggrun.tokens.encoder import Encode, hf_encoder
from ggrun.tokens.pre import Pre
from ggrun.tokens.vocab import Vocab

if TYPE_CHECKING:
    from tokenizers.models import BPE

# Grouping digits from the right takes time quadratic in the length of the number; a longer one is cut first,
# at a multiple of three from its right end, where two groups meet anyway.
_LONGEST_NUMBER = 768
_LONG_NUMBER = re.compile(rf"\d{{{_LONGEST_NUMBER + 1},}}")


def build(vocab: Vocab, cut: Pre, merges: list[str]) -> Encode:
    """An encoder from `merges` ("left right", best first). A merge whose parts are no tokens is ignored."""
    from tokenizers import Regex, Tokenizer, pre_tokenizers

    tokenizer = Tokenizer(_model(vocab, cut, merges))
    steps: list[Any] = [pre_tokenizers.Split(Regex(regex), behavior="isolated") for regex in cut.regexes]
    if cut.byte_level:
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    encode = hf_encoder(tokenizer)
    if cut.groups_digits:
        return lambda text: [token for part in _short_numbers(text) for token in encode(part)]
    return encode


def _model(vocab: Vocab, cut: Pre, merges: list[str]) -> "BPE":
    from tokenizers.models import BPE

    names = vocab.names()
    ids = {name: i for i, name in enumerate(names)}
    options: dict[str, Any] = {"ignore_merges": cut.ignore_merges}
    if not cut.byte_level and "<0x0A>" in ids:
        unknown = None if vocab.unk is None else names[vocab.unk]
        options |= {"byte_fallback": True, "fuse_unk": True, "unk_token": unknown}
    if len(set(merges)) != len(merges):
        merges = list(dict.fromkeys(merges))  # the best rank counts
    # A left part may start with a space, so the parts meet at a later one.
    parts = (m[1:].partition(" ") for m in merges)
    pairs = [(m[0] + left, right) for m, (left, found, right) in zip(merges, parts, strict=True) if found]
    # A file may have merges that make a hidden token of plain text: qwen2 has one for </s>.
    hidden = {vocab.texts[i] for i in vocab.hidden}
    pairs = [pair for pair in pairs if pair[0] + pair[1] not in hidden]
    try:
        return BPE(vocab=ids, merges=pairs, **options)
    except Exception:  # a merge does not fit the vocabulary; looking for it first would cost every build time
        pairs = [(left, right) for left, right in pairs if {left, right, left + right} <= ids.keys()]
        return BPE(vocab=ids, merges=pairs, **options)


def _short_numbers(text: str) -> Iterator[str]:
    last = 0
    for number in _LONG_NUMBER.finditer(text):
        first = number.start() + len(number[0]) % _LONGEST_NUMBER
        for end in range(first, number.end() + 1, _LONGEST_NUMBER):
            yield text[last:end]
            last = end
    yield text[last:]
