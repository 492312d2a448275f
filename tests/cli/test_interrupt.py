"""Two Ctrl+C that nothing answers end the process, in whatever it is."""

import subprocess
import sys

_SCRIPT = """
import os, signal, sys, threading, time
from ggrun.cli import interrupt

grace, seconds = map(float, sys.argv[1:])
seen = threading.Semaphore(0)

def say(line):  # in one piece: each interruption has a thread of its own
    os.write(1, line.encode())

class Computation:
    def interrupt(self):
        say("interrupted\\n")
        seen.release()

interrupt.GRACE = grace
signal.signal(signal.SIGINT, lambda *_: None)
with interrupt.interruptible(Computation()) as answered:
    signal.raise_signal(signal.SIGINT)
    seen.acquire()
    answered()
    signal.raise_signal(signal.SIGINT)
    seen.acquire()
    time.sleep(0.6)
    say("goes on\\n")
    signal.raise_signal(signal.SIGINT)
    seen.acquire()
    time.sleep(seconds)
say("ended in time\\n")
"""


def after_two(grace: float, seconds: float) -> "subprocess.CompletedProcess[str]":
    """A process that takes so long to end after the second Ctrl+C that it did not answer."""
    command = [sys.executable, "-c", _SCRIPT, str(grace), str(seconds)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_second_one_ends_the_process() -> None:
    """And not the first one after one that was answered."""
    done = after_two(0.3, 600)
    assert done.returncode == 130
    # The last interruption is told by a thread that the end may come before.
    assert done.stdout.removesuffix("interrupted\n") == "interrupted\ninterrupted\ngoes on\n"
    assert done.stderr == "\nggrun: given up: something does not come to its end\n"


def test_what_ends_in_time_ends_as_ever() -> None:
    done = after_two(600, 0.3)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "interrupted\ninterrupted\ngoes on\ninterrupted\nended in time\n"
