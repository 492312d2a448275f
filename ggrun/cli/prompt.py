"""Prompts that are typed, one after the other, and what is said to each."""

import os
import signal
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from ggrun.cli.streams import complain, say
from ggrun.errors import GgrunError

_PROMPT = "> "
_HINT = "(Ctrl+D ends the session)"
_LEAVING = (signal.SIGTSTP, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_LOOK = 0.1
"""Seconds between two looks at signals: one that comes just before readline waits for a key wakes nobody."""


def converse(reply: Callable[[str], object], answered: Callable[[], None]) -> None:
    """Ask for prompts and reply to each, until Ctrl+D; Ctrl+C drops the line that is being typed.

    answered    is called when a Ctrl+C was, whatever it ended
    """
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
            if line := _typed():
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


def _typed() -> str:
    """A line that the user types; EOFError for Ctrl+D."""
    try:
        import readline  # gives input() a history and editing
    except ImportError:
        return input(_PROMPT)
    if not sys.stdout.isatty():
        return input(_PROMPT)  # which does without readline then
    with _signals_heard(readline.get_line_buffer):
        return input(_PROMPT)


@contextmanager
def _signals_heard(line: Callable[[], str]) -> Iterator[None]:
    """While readline has the terminal: whoever comes when a signal stops or ends us gets it back with echo.

    readline would do that only if it might have the signals. line: what is typed
    """
    terminal = sys.stdin.fileno()
    usual = ours = termios.tcgetattr(terminal)

    def in_front() -> bool:
        try:
            return os.tcgetpgrp(terminal) == os.getpgrp()
        except OSError:  # it was closed
            return False

    def leave(number: int, frame: FrameType | None) -> None:
        nonlocal ours
        if in_front():
            ours = termios.tcgetattr(terminal)
            termios.tcsetattr(terminal, termios.TCSADRAIN, usual)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)  # it ends here, or waits for fg
        signal.signal(number, leave)

    def come_back(number: int, frame: FrameType | None) -> None:
        if in_front():
            termios.tcsetattr(terminal, termios.TCSADRAIN, ours)
            os.write(sys.stdout.fileno(), (_PROMPT + line()).encode(errors="replace"))

    handlers = {signal.SIGALRM: _look, signal.SIGCONT: come_back, **dict.fromkeys(_LEAVING, leave)}
    # Whoever started us may have had some ignored.
    ours_to_take = [number for number in handlers if signal.getsignal(number) is signal.SIG_DFL]
    for number in ours_to_take:
        signal.signal(number, handlers[number])
    signal.setitimer(signal.ITIMER_REAL, _LOOK, _LOOK)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number in ours_to_take:
            signal.signal(number, signal.SIG_DFL)


def _look(number: int, frame: FrameType | None) -> None:
    """That it is called is all: whatever other signals came are seen by then."""
