"""A step of gpu_check.py: python -m tools.gpu_step NAME SETTINGS RESULTS runs `run` of tools/gpu_NAME.py.

What the step finds is appended to the file RESULTS as soon as it is known, a JSON object a line, so that a
step that crashes, or that has to be killed, still has what it found before.
"""

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
COPY, MATRIX, UPLOAD = "copy bandwidth", "bf16 matrix rate", "upload rate"
"""What figures are shares of; the figures themselves have these names too."""
_ENDING = 3.0  # seconds that a step keeps for itself of what is left, to tell what it has
_NAP = 0.5


@dataclass(frozen=True)
class Figure:
    """One thing that was found out.

    share    of what `of` names; None where that has no meaning, or is not known
    how      the command or the method
    error    one line: why there is no value, or why it is wrong
    """

    what: str
    value: float | None = None
    unit: str = ""
    share: float | None = None
    of: str = ""
    how: str = ""
    error: str = ""
    more: dict[str, Any] = field(default_factory=dict)


class OutOfTimeError(Exception):
    """There is no time left for something."""


class Step:
    """What a step knows, and where it tells what it finds.

    settings    emulated: there is no card, times mean nothing; seconds: for all of the step; known: values of
                figures that steps before had, by name; anything else that gpu_check.py gives
    """

    def __init__(self, settings: dict[str, Any], results: Path) -> None:
        self.settings, self.emulated = settings, bool(settings["emulated"])
        self._results, self._end = results, time.monotonic() + settings["seconds"]

    @property
    def left(self) -> float:
        """Seconds."""
        left: float = self._end - time.monotonic() - _ENDING
        return left

    def tell(self, figure: Figure) -> None:
        """Keep what was found."""
        with self._results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(figure)) + "\n")

    def known(self, name: str) -> float | None:
        """The value of a figure of a step before; None where it has none."""
        value: float | None = self.settings["known"].get(name)
        return value

    def share(self, value: float, of: str) -> float | None:
        """A value as a share of a known one."""
        whole = self.known(of)
        return value / whole if whole else None

    def attempt(self, what: str, work: Callable[[], None], how: str = "") -> None:
        """Do it, if there is time. What goes wrong is told in one line, and does not end the rest."""
        try:
            if self.left <= 0:
                raise OutOfTimeError("not reached: the step's time was used up")
            work()
        except Exception as error:  # whatever it is, it belongs on the page
            self.tell(Figure(what, how=how, error=one_line(error)))

    def wait_for(self, done: Callable[[], bool], what: str) -> None:
        """Sleep until something is there; OutOfTimeError when the step's time is used up first."""
        while not done():
            if self.left <= 0:
                raise OutOfTimeError(f"not reached: {what} did not come in time")
            time.sleep(_NAP)

    def lines(self, command: list[str]) -> Iterator[str]:
        """What a command prints, as soon as it does; OutOfTimeError, or RuntimeError with its last error."""
        with tempfile.TemporaryFile("w+", errors="replace") as errors:
            process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True)
            late = threading.Event()

            def end() -> None:
                late.set()
                process.kill()

            clock = threading.Timer(max(1.0, self.left), end)
            clock.start()
            assert process.stdout
            try:
                yield from process.stdout
                status = process.wait()
            finally:
                clock.cancel()
                process.kill()
                process.wait()
                process.stdout.close()
            if late.is_set():
                raise OutOfTimeError("killed: the step's time was used up")
            if status:
                errors.seek(0)
                raise RuntimeError(f"status {status}: {last_line(errors.read())}")


def one_line(error: BaseException) -> str:
    """An error for a cell of a table: what ggrun says as it is, other things with their kind."""
    from ggrun.errors import GgrunError

    text = " ".join(str(error).split())[:300]
    plain = isinstance(error, GgrunError | OutOfTimeError | RuntimeError)
    return text if plain and text else f"{type(error).__name__}: {text}".removesuffix(": ")


def last_line(text: str) -> str:
    """The last that was said, which in a traceback is the error."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"


def spread(samples: list[float]) -> dict[str, Any]:
    """The least and the most of several, and how many they are."""
    return {"least": min(samples), "most": max(samples), "samples": len(samples)}


def figures(results: Path) -> list[Figure]:
    """All that was told so far; a line that was being written when its process was killed is left out."""
    found = []
    for line in results.read_text(encoding="utf-8").splitlines() if results.exists() else []:
        try:
            found.append(Figure(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return found


def main() -> None:
    """Run a step, in this process."""
    name, settings, results = sys.argv[1:]
    import_module(f"tools.gpu_{name}").run(Step(json.loads(settings), Path(results)))


if __name__ == "__main__":
    main()
