"""A model's tokenizer: text to token ids and back."""

from collections.abc import Iterable, Mapping
from operator import index
from os import PathLike
from typing import Any, Self

from ggrun.tokens import bpe, special, spm, unigram, wordpiece
from ggrun.tokens.encoder import LazyEncoder
from ggrun.tokens.errors import TokenizerError
from ggrun.tokens.fields import Fields
from ggrun.tokens.guard import GUARD
from ggrun.tokens.matcher import Matcher
from ggrun.tokens.pieces import token_bytes
from ggrun.tokens.stream import StreamDecoder
from ggrun.tokens.vocab import SPACE, SURROGATE, Kind, Type, Vocab, read_vocab

_WHITE = " \t\n\v\f\r"  # what C calls white space


class Tokenizer:
    """Text to token ids and back, with the vocabulary in a GGUF file.

    Reading the vocabulary is quick; what encoding needs is built when first used (`prepare` does it at once).

    Attributes: `kind` (how text becomes tokens), `n_vocab`; `bos`, `eos`, `unk`, `sep`, `pad`, `mask` (ids or
    None), `eog` (the ids that end a generation), `fim` (fill in the middle: ids by role, 'pre', 'suf', 'mid',
    'pad', 'rep', 'sep'); `add_bos`, `add_eos` (whether `encode` adds them); `chat_template` (Jinja or None).
    """

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        fields = Fields(metadata)
        template = metadata.get("tokenizer.chat_template")
        self.chat_template = template if isinstance(template, str) else None
        self._vocab = vocab = read_vocab(fields)
        self._specials = specials = special.derive(vocab, fields, self.chat_template or "")
        self._encode_plain = _encoder(vocab, fields)
        self._bytes: list[bytes | None] = [None] * len(vocab.texts)
        self._ours = Matcher(special.for_ourselves(vocab))
        self._outsiders = Matcher(special.for_outsiders(vocab))
        self.kind = vocab.kind
        self.n_vocab = len(vocab.texts)
        self.bos, self.eos, self.unk = vocab.bos, vocab.eos, vocab.unk
        self.sep, self.pad, self.mask = vocab.sep, vocab.pad, vocab.mask
        self.add_bos, self.add_eos = vocab.add_bos, vocab.add_eos
        self.eog, self.fim = specials.eog, specials.fim

    @classmethod
    def from_gguf(cls, path: str | PathLike[str]) -> Self:
        """The tokenizer of a GGUF file; `TokenizerError` where there is none that we can use."""
        from ggrun.gguf import GGUF

        return cls.from_metadata(GGUF(path).metadata)

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> Self:
        """The tokenizer in a GGUF file's metadata; `TokenizerError` where there is none that we can use."""
        return cls(metadata)

    def prepare(self) -> None:
        """Builds now what the first `encode` would build: up to a second for a large vocabulary."""
        self._encode_plain.prepare()

    # Text to ids.

    def encode(self, text: str, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """The token ids of `text`.

        `add_special` adds what the model wants around a text (BOS, EOS). `parse_special` lets the text name
        special tokens: only for text of our own. Without it no text becomes a CONTROL token, and of the
        USER_DEFINED ones, which llama.cpp always parses, only those that are no part of a chat's structure.
        Pairs of surrogates count as the character they mean, lone ones as U+FFFD.
        """
        matcher = self._ours if parse_special else self._outsiders
        ids = self._encode_parts(matcher.split(_repaired(text)))
        return self._enclosed(ids) if add_special else ids

    def encode_guarded(self, text: str) -> list[int]:
        """The ids of a rendered chat, in which a `guard.Guard` has broken the tokens that users wrote."""
        parts = self._ours.split(_repaired(text))
        whole = [part.replace(GUARD, "") if isinstance(part, str) else part for part in parts]
        return self._encode_parts([part for part in whole if part != ""])

    def structural_texts(self) -> list[str]:
        """The texts of the special tokens that text from outside must never become."""
        return [text for text in self._ours.tokens if text not in self._outsiders.tokens]

    def _encode_parts(self, parts: list[str | int]) -> list[int]:
        if self._specials.lstrip or self._specials.rstrip:
            parts = self._stripped(parts)
        ids: list[int] = []
        after_special = True
        for part in parts:
            if isinstance(part, str):
                ids += self._encode_plain(self._spelled(part, after_special))
            else:
                ids.append(part)
            after_special = not isinstance(part, str)
        return ids

    def _spelled(self, text: str, after_special: bool) -> str:
        """`text` with its spaces as the vocabulary writes them."""
        vocab = self._vocab
        if vocab.kind is Kind.SPM:
            return (" " + text if vocab.add_space_prefix and after_special else text).replace(" ", SPACE)
        return text.replace(" ", SPACE) if vocab.pre and vocab.pre.escape_spaces else text

    def _stripped(self, parts: list[str | int]) -> list[str | int]:
        out: list[str | int] = []
        for part, before, after in zip(parts, [None, *parts], [*parts[1:], None], strict=False):
            if isinstance(part, str):
                part = part.rstrip(_WHITE) if after in self._specials.lstrip else part
                part = part.lstrip(_WHITE) if before in self._specials.rstrip else part
            if part != "":
                out.append(part)
        return out

    def _enclosed(self, ids: list[int]) -> list[int]:
        vocab = self._vocab
        before = [vocab.bos] if vocab.add_bos and vocab.bos is not None else []
        last = vocab.eos if vocab.add_eos else None
        if vocab.kind is Kind.WORDPIECE:
            last = vocab.sep
        return before + ids + ([last] if last is not None else [])

    # Ids to text.

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """The text of a whole list of ids; bytes that are not UTF-8 become U+FFFD.

        `skip_special` leaves out CONTROL and UNKNOWN tokens. The space that `encode` puts before a text is
        taken off, so this is not for the continuation of a text: see `stream`.
        """
        shown = [i for i in map(self._checked, ids) if not (skip_special and self.is_control(i))]
        text = b"".join(map(self.token_bytes, shown)).decode("utf-8", "replace")
        prefixed = self._vocab.add_space_prefix or self.kind is Kind.WORDPIECE
        return text.removeprefix(" ") if prefixed else text

    def stream(self, skip_special: bool = True) -> StreamDecoder:
        """A decoder for tokens that come one by one and continue a text: a space at the start stays."""

        def bytes_of(token: int) -> bytes:
            return b"" if skip_special and self.is_control(token) else self.token_bytes(token)

        return StreamDecoder(bytes_of)

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token adds to the text; `TokenizerError` for an id outside the vocabulary."""
        token = self._checked(token)
        found = self._bytes[token]
        if found is None:
            found = self._bytes[token] = token_bytes(self._vocab, token)
        return found

    def token_text(self, token: int | None) -> str:
        """A special token as a chat template writes it; '' for None."""
        return "" if token is None else self.token_bytes(token).decode("utf-8", "replace")

    def is_control(self, token: int) -> bool:
        """Whether the token is no text but an instruction (CONTROL or UNKNOWN)."""
        return self._vocab.types[self._checked(token)] in (Type.CONTROL, Type.UNKNOWN)

    def _checked(self, token: int) -> int:
        token = index(token)
        if not 0 <= token < self.n_vocab:
            raise TokenizerError(f"token id {token} is not in the vocabulary of {self.n_vocab}")
        return token


def _encoder(vocab: Vocab, fields: Fields) -> LazyEncoder:
    """Reads and checks what the kind of vocabulary needs; leaves the building for later."""
    if vocab.pre is not None:
        cut, merges = vocab.pre, fields.strings("merges")
        if merges is None:
            raise TokenizerError("the model has a BPE vocabulary without merges (tokenizer.ggml.merges)")
        return LazyEncoder(lambda: bpe.build(vocab, cut, merges))
    if vocab.kind is Kind.SPM:
        return LazyEncoder(lambda: spm.build(vocab))
    if vocab.kind is Kind.WORDPIECE:
        lowercase, strip_accents = wordpiece.options(fields)
        return LazyEncoder(lambda: wordpiece.build(vocab, lowercase, strip_accents))
    charsmap, squeeze = unigram.options(fields)
    return LazyEncoder(lambda: unigram.build(vocab, charsmap, squeeze))


def _repaired(text: str) -> str:
    if not SURROGATE.search(text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
