"""Prompts that are typed, one after the other, and what is said to each."""

from collections.abc import Callable
from contextlib import suppress

from ggrun.cli.streams import complain, say
from ggrun.errors import GgrunError

_HINT = "(Ctrl+D ends the session)"


def converse(reply: Callable[[str], object], answered: Callable[[], None]) -> None:
    """Ask for prompts and reply to each, until Ctrl+D; Ctrl+C drops the line that is being typed.

    answered    is called when a Ctrl+C was, whatever it ended
    """
    with suppress(ImportError):
        import readline  # noqa: F401 -- gives input() a history and editing
    hint, dropped = _HINT, False
    while True:
        # Ctrl+C may come at any moment, just after the end of a text too: where it is caught, little is done.
        try:
            answered()
            if dropped:
                dropped = False
                print(flush=True)
                if hint:
                    say(hint)
                    hint = ""
            if line := input("> "):
                _try(reply, line)
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            dropped = True


def _try(reply: Callable[[str], object], line: str) -> None:
    """What goes wrong with one prompt does not end the session."""
    try:
        reply(line)
    except GgrunError as error:
        complain(str(error))
