"""BERT's WordPiece: the longest token that fits, again and again, word by word."""

from ggrun.tokens.encoder import Encode, hf_encoder
from ggrun.tokens.errors import TokenizerError
from ggrun.tokens.fields import Fields
from ggrun.tokens.vocab import SPACE, Vocab

_LONGEST_WORD = 100  # characters, as in BERT: a longer word is unknown


def build(vocab: Vocab, lowercase: bool, strip_accents: bool) -> Encode:
    """An encoder; `lowercase` and `strip_accents` say how the model wants its text."""
    from tokenizers import Tokenizer, normalizers, pre_tokenizers
    from tokenizers.models import WordPiece

    if vocab.unk is None:
        raise TokenizerError(
            "the WordPiece vocabulary has no unknown token (tokenizer.ggml.unknown_token_id)"
        )
    names = vocab.names()
    pieces: dict[str, int] = {}
    for i, name in enumerate(names):
        pieces.setdefault(name if i in vocab.hidden else _piece(name), i)
    unknown = names[vocab.unk] if vocab.unk in vocab.hidden else _piece(names[vocab.unk])
    tokenizer = Tokenizer(WordPiece(pieces, unk_token=unknown, max_input_chars_per_word=_LONGEST_WORD))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=strip_accents, lowercase=lowercase
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return hf_encoder(tokenizer)


def options(fields: Fields) -> tuple[bool, bool]:
    """What the metadata says about (lower case, accents); the latter goes with the former."""
    lowercase = fields.flag("normalizer.lowercase", True)
    return lowercase, fields.flag("normalizer.strip_accents", lowercase)


def _piece(name: str) -> str:
    """The file marks the start of a word with ▁; BERT marks every other piece with ##."""
    return name[1:] if name.startswith(SPACE) else "##" + name
