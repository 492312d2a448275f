"""SentencePiece BPE: the merges are not in the file but follow from the scores of the pieces."""

import re
from collections.abc import Iterable, Mapping
from operator import itemgetter
from typing import TYPE_CHECKING

from ggrun.tokens.encoder import Encode, hf_encoder
from ggrun.tokens.vocab import SPACE, Type, Vocab

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_LONGEST_PIECE = 512  # a longer piece is never put together: trying every split of it would take too long
_SPACE_INSIDE = re.compile(f"[^{SPACE}]{SPACE}")
_PLAIN = (Type.NORMAL, Type.UNUSED, Type.USER_DEFINED)
_WORD = f"{SPACE}*[^{SPACE}]+|{SPACE}+"


def build(vocab: Vocab) -> Encode:
    """An encoder of text with ▁ for its spaces."""
    from tokenizers import Tokenizer
    from tokenizers.models import BPE

    names = vocab.names()
    ids = {name: i for i, name in enumerate(names)}
    pieces = plain_pieces(vocab, names)
    unknown = names[vocab.unk or 0]
    fallback = "<0x0A>" in ids
    tokenizer = Tokenizer(
        BPE(vocab=ids, merges=merges(pieces), byte_fallback=fallback, unk_token=unknown, fuse_unk=True)
    )
    split_words(tokenizer, pieces)
    return hf_encoder(tokenizer)


def split_words(tokenizer: "Tokenizer", pieces: Iterable[str]) -> None:
    """Lets words be encoded one by one (and cached) where no piece reaches into the next word."""
    from tokenizers import Regex, pre_tokenizers

    if not any(_SPACE_INSIDE.search(piece) for piece in pieces):
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_WORD), behavior="isolated")


def merges(pieces: Mapping[str, float]) -> list[tuple[str, str]]:
    """Every way to make a piece of two others, best score first; ties keep the order of the vocabulary."""
    found = []
    for piece, _ in sorted(pieces.items(), key=itemgetter(1), reverse=True):
        if len(piece) <= _LONGEST_PIECE:
            for i in range(1, len(piece)):
                left, right = piece[:i], piece[i:]
                if left in pieces and right in pieces:
                    found.append((left, right))
    return found


def plain_pieces(vocab: Vocab, names: list[str]) -> dict[str, float]:
    """The scores of the pieces that plain text may become, by name."""
    tokens = zip(names, vocab.scores, vocab.types, strict=True)
    return {name: score for name, score, kind in tokens if kind in _PLAIN}
