"""ggrun runs GGUF models. Importing it is cheap: what needs Numba is imported when it is used."""

__version__ = "0.1.0"

TYPE_CHECKING = False  # not from typing, whose import is a third of the time that help takes
if TYPE_CHECKING:
    from ggrun.engine.sampler import SamplingOptions
    from ggrun.errors import GgrunError, Interrupted, UsageError
    from ggrun.llm import LLM
    from ggrun.tokens import Tokenizer

_HOMES = {
    "LLM": "ggrun.llm",
    "Tokenizer": "ggrun.tokens",
    "SamplingOptions": "ggrun.engine.sampler",
    "GgrunError": "ggrun.errors",
    "Interrupted": "ggrun.errors",
    "UsageError": "ggrun.errors",
}
__all__ = ["LLM", "GgrunError", "Interrupted", "SamplingOptions", "Tokenizer", "UsageError"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'ggrun' has no attribute {name!r}")
    from importlib import import_module

    exported: object = getattr(import_module(_HOMES[name]), name)
    return exported
