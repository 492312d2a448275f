"""Two Ctrl+C that nothing answers end the process, in whatever it is."""

import subprocess
import sys

_SCRIPT = """
import os, signal, threading, time
from ggrun.cli import interrupt

seen = threading.Semaphore(0)

def say(line):  # in one piece: each interruption has a thread of its own
    os.write(1, line.encode())

class Computation:
    def interrupt(self):
        say("interrupted\\n")
        seen.release()

interrupt.GRACE = 1.0
signal.signal(signal.SIGINT, lambda *_: None)
with interrupt.interruptible(Computation()) as answered:
    signal.raise_signal(signal.SIGINT)
    answered()
    signal.raise_signal(signal.SIGINT)
    seen.acquire(), seen.acquire()
    time.sleep(1.5)  # more than the grace
    say("goes on\\n")
    signal.raise_signal(signal.SIGINT)
    time.sleep({seconds})
say("ended in time\\n")
"""


def after_two(seconds: float) -> "subprocess.CompletedProcess[str]":
    """A process that takes so long to end after the second Ctrl+C that it did not answer."""
    script = _SCRIPT.replace("{seconds}", str(seconds))
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)


def test_the_second_one_ends_the_process() -> None:
    done = after_two(600)
    assert done.returncode == 130
    assert done.stdout == "interrupted\ninterrupted\ngoes on\ninterrupted\n"
    assert done.stderr == "\nggrun: given up: something does not come to its end\n"


def test_what_ends_in_time_ends_as_ever() -> None:
    done = after_two(0)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("ended in time\n")
