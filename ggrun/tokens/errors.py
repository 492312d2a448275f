"""What can go wrong with a vocabulary or a chat template."""

from ggrun.errors import GgrunError


class TokenizerError(GgrunError):
    """The model's vocabulary cannot be used, or a token id is not in it."""


class TemplateError(GgrunError):
    """A chat template cannot be compiled, refuses the messages, or runs away."""
