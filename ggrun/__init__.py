"""ggrun runs GGUF models. Importing it is cheap: what needs Numba is imported when it is used."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ggrun.engine.sampler import SamplingOptions
    from ggrun.errors import GgrunError, UsageError
    from ggrun.llm import LLM
    from ggrun.tokens import Tokenizer

_HOMES = {
    "LLM": "ggrun.llm",
    "Tokenizer": "ggrun.tokens",
    "SamplingOptions": "ggrun.engine.sampler",
    "GgrunError": "ggrun.errors",
    "UsageError": "ggrun.errors",
}
__all__ = ["LLM", "GgrunError", "SamplingOptions", "Tokenizer", "UsageError"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ggrun' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
