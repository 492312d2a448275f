"""Sessions in which prompts are typed: Ctrl+C and Ctrl+D, in a terminal of their own."""

import os
import pty
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.cli.test_run import listen_to_ctrl_c, read_until
from tests.cli.test_start import Screen

HINT = "(Ctrl+D ends the session)"
# Ctrl+C a moment after a text has ended by itself.
LATE = """
import signal
from ggrun.cli import run
whole = run._Output.generation
def generation(*args):
    whole(*args)
    signal.raise_signal(signal.SIGINT)
run._Output.generation = generation
import ggrun.cli
ggrun.cli.main()
"""


@contextmanager
def session(script: str, *flags: str) -> Iterator[tuple[int, Screen]]:
    """The terminal of a session that has asked for a prompt; ends it with Ctrl+D: its status must be 0."""
    pid, terminal = pty.fork()
    if pid == 0:
        listen_to_ctrl_c()
        arguments = ["run", "-n", "3", "--temp", "0", "--no-show-timings", *flags]
        os.execv(sys.executable, [sys.executable, "-c", script, *arguments])
    try:
        screen = Screen(terminal)
        screen.wait_for("> ")
        yield terminal, screen
        os.write(terminal, b"\x04")
        read_until(terminal, "nothing more comes")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    finally:
        os.close(terminal)


def test_ctrl_c_drops_the_line_and_not_the_session() -> None:
    with session("import ggrun.cli; ggrun.cli.main()") as (terminal, screen):
        os.write(terminal, b"half typed line")
        screen.wait_for("half typed line")
        os.write(terminal, b"\x03")
        screen.wait_for(HINT)
        screen.wait_for("> ")
        for _ in range(3):  # the hint comes once, and several do not end it either
            os.write(terminal, b"\x03")
            before = screen.wait_for("\n> ")
            assert HINT not in before
        os.write(terminal, b"Once\n")
        screen.wait_for("Once\r\n")
        assert screen.wait_for("\r\n> ").startswith("Once")


def test_ctrl_c_after_the_end_of_a_text_does_not_end_the_session() -> None:
    with session(LATE) as (terminal, screen):
        for _ in range(2):
            os.write(terminal, b"Once\n")
            screen.wait_for("Once\r\n")
            screen.wait_for("\n> ")


# What a shell does with a job, but for what it does with the terminal: some save it from what a job has set.
SHELL = """
import os, signal, sys, termios
def told(what):
    print(f"[{what} {bool(termios.tcgetattr(0)[3] & termios.ECHO)}]", flush=True)
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
job = os.fork()
if job == 0:
    os.setpgid(0, 0)
    os.tcsetpgrp(0, os.getpid())
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    os.execv(sys.executable, [sys.executable, "-c", "import ggrun.cli; ggrun.cli.main()", *sys.argv[1:]])
os.waitpid(job, os.WUNTRACED)
told("stopped with echo")
os.tcsetpgrp(0, job)
os.kill(job, signal.SIGCONT)
os.waitpid(job, os.WUNTRACED)
os.tcsetpgrp(0, os.getpgrp())
told("stopped again with echo")
os.tcsetpgrp(0, job)
os.kill(job, signal.SIGCONT)
_, status = os.waitpid(job, 0)
os.tcsetpgrp(0, os.getpgrp())
told(f"ended by {-os.waitstatus_to_exitcode(status)} with echo")
sys.exit(0)
"""


def test_the_terminal_is_as_it_was_when_a_session_stops() -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        listen_to_ctrl_c()
        flags = ["-n", "3", "--temp", "0", "--no-show-timings"]
        os.execv(sys.executable, [sys.executable, "-c", SHELL, "run", *flags])
    try:
        screen = Screen(terminal)
        screen.wait_for("> ")
        os.write(terminal, b"nce")
        screen.wait_for("nce")
        os.write(terminal, b"\x1a")
        screen.wait_for("[stopped with echo True]")
        screen.wait_for("> nce")
        os.write(terminal, b"\x01O\n")  # readline has its keys again: the O goes to the front
        screen.wait_for("\nOnce")
        screen.wait_for("\n> ")
        os.write(terminal, b"\x1a")
        screen.wait_for("[stopped again with echo True]")
        screen.wait_for("> ")
        os.write(terminal, b"\x1c")  # Ctrl+\, which is SIGQUIT
        screen.wait_for("[ended by 3 with echo True]")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    finally:
        os.close(terminal)
