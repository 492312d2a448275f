"""The errors that users see: one clear line, and an exit status."""


class GgrunError(Exception):
    """Something is wrong with a file, a device or a request; str() is the one line that says so."""

    exit_status = 1


class Interrupted(GgrunError):
    """A computation was told to stop."""


class UsageError(GgrunError):
    """A flag, an argument or a request does not make sense."""

    exit_status = 2


def escaped(text: str) -> str:
    """Text with what cannot be printed as Python writes it: names of files may have anything in them."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
