"""Two Ctrl+C that nothing answers end the process, in whatever it is."""

import subprocess
import sys

_SCRIPT = """
import signal, time
from ggrun.cli import interrupt

class Computation:
    def interrupt(self):
        print("interrupted", flush=True)

interrupt.GRACE = 0.2
signal.signal(signal.SIGINT, lambda *_: None)
with interrupt.interruptible(Computation()) as answered:
    signal.raise_signal(signal.SIGINT)
    answered()
    signal.raise_signal(signal.SIGINT)
    time.sleep(1)
    print("goes on", flush=True)
    signal.raise_signal(signal.SIGINT)
    time.sleep({seconds})
print("ended in time")
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
