"""The bytes that a token stands for."""

import re

from ggrun.tokens.vocab import SPACE, Type, Vocab

_BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes stand for themselves, the others for characters from U+0100 on.

    Source: `bytes_to_unicode` in OpenAI's GPT-2 encoder.py.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in set(printable)]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(others)}


_ALPHABET = _byte_alphabet()


def token_bytes(vocab: Vocab, token: int) -> bytes:
    """The bytes of one token: what it adds to the text. UNUSED and undefined tokens add nothing."""
    kind, text = vocab.types[token], vocab.texts[token]
    if kind in (Type.CONTROL, Type.UNKNOWN, Type.USER_DEFINED):
        return _utf8(text)
    if kind == Type.BYTE:
        spelled = _BYTE.fullmatch(text)
        return bytes([int(spelled[1], 16)]) if spelled else _utf8(text)
    if kind != Type.NORMAL:
        return b""
    if vocab.pre is None or vocab.pre.escape_spaces:
        return _utf8(text.replace(SPACE, " "))
    return _from_alphabet(text) if vocab.pre.byte_level else _utf8(text)


def _from_alphabet(text: str) -> bytes:
    try:
        return bytes(map(_ALPHABET.__getitem__, text))
    except KeyError:  # not in the alphabet after all: an added token that is labelled NORMAL
        return _utf8(text)


def _utf8(text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # surrogates that stand for no byte: not from a file
        return text.encode("utf-8", "replace")
