"""A vocabulary: the text, the type and the score of every token, and the ids with a role."""

import re
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from itertools import compress, count

from ggrun.tokens import pre
from ggrun.tokens.errors import TokenizerError
from ggrun.tokens.fields import Fields

SPACE = "\u2581"  # ▁: how most vocabularies write a space
SURROGATE = re.compile("[\ud800-\udfff]")  # in a string from a file: a byte that is not UTF-8
_MODELS_WITHOUT = ("none", "no_vocab", "test")


class Kind(StrEnum):
    """How text becomes tokens: the values of `tokenizer.ggml.model` that we can read."""

    BPE = "gpt2"
    GEMMA4 = "gemma4"
    SPM = "llama"
    WORDPIECE = "bert"
    UNIGRAM = "t5"


class Type(IntEnum):
    """What a token is: the values of `tokenizer.ggml.token_type`."""

    UNDEFINED = 0
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class _Defaults:
    """What llama.cpp assumes of a kind of vocabulary when the metadata does not say."""

    bos: int | None = None
    eos: int | None = None
    unk: int | None = None
    sep: int | None = None
    pad: int | None = None
    add_bos: bool = False
    add_eos: bool = False
    add_space_prefix: bool = False


_DEFAULTS = {
    Kind.BPE: _Defaults(bos=11, eos=11),
    Kind.GEMMA4: _Defaults(),
    Kind.SPM: _Defaults(bos=1, eos=2, unk=0, add_bos=True, add_space_prefix=True),
    Kind.WORDPIECE: _Defaults(bos=101, unk=100, sep=102, pad=0, add_bos=True),
    Kind.UNIGRAM: _Defaults(eos=1, unk=2, pad=0, add_eos=True),
}


@dataclass
class Vocab:
    """The tokens of a model; ids index `texts`, `types` and `scores`.

    `texts` are as the file has them: BPE ones in GPT-2's byte alphabet, others with ▁ for a space. `types`
    are plain ints. `pre` is how text is cut into words before BPE (None for the other kinds). `hidden` are
    tokens that plain text must never become; they, and corrections of `types`, come from `special.derive`.
    """

    kind: Kind
    texts: list[str]
    types: list[int]
    scores: list[float]
    pre: pre.Pre | None
    bos: int | None = None
    eos: int | None = None
    unk: int | None = None
    sep: int | None = None
    pad: int | None = None
    mask: int | None = None
    add_bos: bool = False
    add_eos: bool = False
    add_space_prefix: bool = False
    hidden: frozenset[int] = frozenset()

    def names(self) -> list[str]:
        """`texts` for what encodes plain text; hidden and broken ones get names that no text contains."""
        names = self.texts.copy()
        broken = "" in names or SURROGATE.search("".join(names))
        for i in range(len(names)) if broken else self.hidden:
            if i in self.hidden or not names[i] or SURROGATE.search(names[i]):
                names[i] = f"\U000f0000{i}\U000f0000"
        return names

    def of_type(self, *types: Type) -> list[int]:
        """The ids of all tokens of these types."""
        wanted = {t.value for t in types}  # plain ints are faster to compare with
        return list(compress(count(), map(wanted.__contains__, self.types)))


def read_vocab(fields: Fields) -> Vocab:
    """The vocabulary in a model's metadata; `TokenizerError` where there is none that we can use."""
    kind = _read_kind(fields)
    texts = fields.strings("tokens")
    if not texts:
        raise TokenizerError("the model has no list of tokens (tokenizer.ggml.tokens)")
    n = len(texts)
    cut = _read_pre(fields, kind)
    defaults = _DEFAULTS[kind]
    add_bos = fields.flag("add_bos_token", defaults.add_bos or bool(cut and cut.add_bos))
    vocab = Vocab(
        kind=kind,
        texts=texts,
        types=fields.integers("token_type", n) or [Type.NORMAL.value] * n,
        scores=fields.floats("scores", n) or [0.0] * n,
        pre=cut,
        add_bos=add_bos or kind in (Kind.GEMMA4, Kind.WORDPIECE),  # whatever the file says, as in llama.cpp
        add_eos=fields.flag("add_eos_token", defaults.add_eos),
        add_space_prefix=fields.flag("add_space_prefix", defaults.add_space_prefix),
    )
    _read_ids(vocab, fields, defaults)
    return vocab


def _read_kind(fields: Fields) -> Kind:
    model = fields.text("model")
    if not model or model in _MODELS_WITHOUT:
        raise TokenizerError("the model has no tokenizer; it takes and gives token ids only")
    try:
        return Kind(model)
    except ValueError:
        known = ", ".join(kind.value for kind in Kind)
        raise TokenizerError(f"tokenizer model {model!r} is not supported (known: {known})") from None


def _read_pre(fields: Fields, kind: Kind) -> pre.Pre | None:
    if kind is Kind.GEMMA4:
        return pre.find("gemma4")
    return pre.find(fields.text("pre") or "default") if kind is Kind.BPE else None


def _read_ids(vocab: Vocab, fields: Fields, defaults: _Defaults) -> None:
    n = len(vocab.texts)

    def read(key: str, default: int | None) -> int | None:
        found = fields.token(f"{key}_token_id", n)
        return default if found is None and default is not None and default < n else found

    vocab.bos, vocab.eos = read("bos", defaults.bos), read("eos", defaults.eos)
    vocab.unk, vocab.pad = read("unknown", defaults.unk), read("padding", defaults.pad)
    vocab.sep, vocab.mask = read("seperator", defaults.sep), read("mask", None)  # spelled like that in GGUF
