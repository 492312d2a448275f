"""Vocabularies and chat templates: text to token ids and back."""

from .chat import ChatTemplate
from .errors import TemplateError, TokenizerError
from .stream import StreamDecoder
from .tokenizer import Tokenizer

__all__ = ["ChatTemplate", "StreamDecoder", "TemplateError", "Tokenizer", "TokenizerError"]
