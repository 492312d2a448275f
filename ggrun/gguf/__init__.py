"""GGUF files: a checked reader that maps weights without copying them, and an atomic writer.

Shapes are in ggml order (shape[0] is the contiguous row), sizes in bytes. Whatever is wrong with a file is
raised as a GGUFError, whose text is one line.
"""

from ggrun.gguf.errors import GGUFError
from ggrun.gguf.first_layers import FirstLayers
from ggrun.gguf.mapped import Tensor
from ggrun.gguf.reader import GGUF, Declared, Outline
from ggrun.gguf.types import FORMATS, FORMATS_BY_ID, Format, Value, ValueType
from ggrun.gguf.writer import Source, write_gguf

__all__ = [
    "FORMATS",
    "FORMATS_BY_ID",
    "GGUF",
    "Declared",
    "FirstLayers",
    "Format",
    "GGUFError",
    "Outline",
    "Source",
    "Tensor",
    "Value",
    "ValueType",
    "write_gguf",
]
