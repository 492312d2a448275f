"""The one error of this package, kept to one printable line whatever a hostile file puts into it."""

from ggrun.errors import GgrunError, escaped


class GGUFError(GgrunError):
    """A GGUF file cannot be read or written; str() is one line: which file, what is wrong, what helps."""

    def __init__(self, message: str) -> None:
        # Names of files, keys and tensors go into messages: a newline, an escape code or an undecodable byte
        # in one of them must reach neither the terminal nor an encoder.
        super().__init__(escaped(message))


def shown(name: str, limit: int = 80) -> str:
    """Return a name from a file as a message shows it: quoted, and cut where it is absurdly long."""
    return repr(name if len(name) <= limit else name[:limit] + "…")
