"""T5's Unigram model: of all ways to write the text in tokens, the one with the best sum of scores."""

import re

from ggrun.tokens.charsmap import Charsmap
from ggrun.tokens.encoder import Encode, hf_encoder
from ggrun.tokens.errors import TokenizerError
from ggrun.tokens.fields import Fields
from ggrun.tokens.spm import plain_pieces, split_words
from ggrun.tokens.vocab import SPACE, Type, Vocab

_SPACES = re.compile(" {2,}")


def build(vocab: Vocab, charsmap: Charsmap | None, squeeze: bool) -> Encode:
    """An encoder; `squeeze` leaves out the spaces at both ends and all but one of a run."""
    from tokenizers import Tokenizer
    from tokenizers.models import Unigram

    if vocab.unk is None:
        raise TokenizerError("the Unigram vocabulary has no unknown token (tokenizer.ggml.unknown_token_id)")
    names = vocab.names()
    plain = plain_pieces(vocab, names)
    tokenizer = Tokenizer(Unigram([_piece(vocab, i, name) for i, name in enumerate(names)], unk_id=vocab.unk))
    split_words(tokenizer, plain)
    encode_pieces = hf_encoder(tokenizer)

    def encode(text: str) -> list[int]:
        text = charsmap.normalize(text) if charsmap else text
        text = _SPACES.sub(" ", text.strip(" ")) if squeeze else text
        prefix = " " if vocab.add_space_prefix and text else ""
        return encode_pieces((prefix + text).replace(" ", SPACE))

    return encode


def options(fields: Fields) -> tuple[Charsmap | None, bool]:
    """What the metadata says about (the character map, squeezing spaces)."""
    blob = fields.blob("precompiled_charsmap")
    return Charsmap(blob) if blob else None, fields.flag("remove_extra_whitespaces", False)


def _piece(vocab: Vocab, token: int, name: str) -> tuple[str, float]:
    # What the user defined is always worth more than what it would be cut into.
    return name, 0.0 if vocab.types[token] == Type.USER_DEFINED else vocab.scores[token]
