"""Vocabularies and chat templates: text to token ids and back."""

from ggrun.tokens.chat import ChatTemplate
from ggrun.tokens.errors import TemplateError, TokenizerError
from ggrun.tokens.stream import StreamDecoder
from ggrun.tokens.tokenizer import Tokenizer

__all__ = ["ChatTemplate", "StreamDecoder", "TemplateError", "Tokenizer", "TokenizerError"]
