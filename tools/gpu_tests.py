"""The tests that are marked cuda, on the card, in several processes: compiling takes most of the time."""

import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from tools.gpu_pytest import BROKEN, records
from tools.gpu_step import ROOT, Figure, Step, last_line

_PROCESSES = 16
_TOLD = 80
"""Failures that are listed."""
_FINISHED = (0, 1, 5)  # all passed, some failed, there was none
_NAP = 0.1


class _Part:
    """The tests of one process; when it crashes, another one goes on behind the test that did it."""

    def __init__(self, step: Step, folder: Path, index: int, of: int) -> None:
        self.results, self._log = folder / f"{index}.jsonl", folder / f"{index}.log"
        self._command = [sys.executable, *_arguments(step)]
        # With "=": pytest takes what is the name of a file for a place of tests, and names them by it.
        self._command += [f"--part={index}/{of}", f"--results={self.results}"]
        self.last = ""
        self._begun = -1
        self._start()

    def _start(self) -> None:
        self._before, self._begun = self._begun, len(records(self.results))
        with self._log.open("w") as log:
            self._process = subprocess.Popen(self._command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)

    def running(self) -> bool:
        """Whether there is more to come."""
        status = self._process.poll()
        if status is None:
            return True
        if status in _FINISHED:
            return False
        # pytest itself may have failed; or a process ended before it came to any test.
        begun = len(records(self.results))
        self.last = f"status {status}: {last_line(self._log.read_text(errors='replace'))}"
        if begun > self._begun + 1 and (status < 0 or status == BROKEN):
            self._start()
            return True
        return False

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            self._process.kill()
        with suppress(subprocess.TimeoutExpired):  # one that hangs inside the driver may outlive this
            self._process.wait(1)


def run(step: Step) -> None:
    """Run them, until all are done or the time is up, and count."""
    step.attempt("tests", lambda: _run(step))


def _run(step: Step) -> None:
    processes = 1 if step.emulated else min(_PROCESSES, os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as name:
        parts = [_Part(step, Path(name), i, processes) for i in range(processes)]
        begin = time.monotonic()
        try:
            while sum(part.running() for part in parts) and step.left > 0:
                time.sleep(_NAP)
        finally:
            for part in parts:
                part.kill()
        _tell(step, parts, time.monotonic() - begin)


def _arguments(step: Step) -> list[str]:
    """pytest's."""
    device = "emulator" if step.emulated else "cuda"
    some = ["tests/cuda/test_rows.py", "-k", "800-forward"]  # all of them take very long
    every = ["tests/cuda", "-m", "cuda and not slow"]
    where = step.settings["tests"] or (some if step.emulated else every)
    return [
        "-m",
        "pytest",
        "-q",
        "-p",
        "tools.gpu_pytest",
        "-p",
        "no:cacheprovider",
        *where,
        "--device",
        device,
    ]


def _tell(step: Step, parts: list[_Part], seconds: float) -> None:
    found = [record for part in parts for record in records(part.results)]
    # A part that was started again has counted again what is its own.
    collected = sum(
        max((r["collected"] for r in records(p.results) if "collected" in r), default=0) for p in parts
    )
    last = {record["id"]: record for record in found if "id" in record}
    tally = Counter(record["outcome"] for record in last.values())
    how = f"{shlex.join(['python', *_arguments(step)])}, {len(parts)} processes"
    missing = collected - len(last)
    more = {**tally, "not reached": missing, "seconds": round(seconds, 1)}
    wrong = _wrong(tally, missing)
    if not collected:
        wrong = next((part.last for part in parts if part.last), "no tests were found")
    passed = float(tally["passed"])
    what = f"tests passed, of {collected}"
    step.tell(
        Figure(what, passed, share=passed / collected if collected else None, how=how, error=wrong, more=more)
    )
    _tell_failures(step, list(last.values()))
    for reason, times in Counter(r["line"] for r in last.values() if r["outcome"] == "skipped").items():
        step.tell(Figure("skipped tests", times, how=reason))


def _wrong(tally: Counter[str], missing: int) -> str:
    """In words."""
    words = {"failed": "failed", "begun": "crashed their process, or were running when the time was up"}
    said = [f"{tally[outcome]} {text}" for outcome, text in words.items() if tally[outcome]]
    return "; ".join(said + ([f"{missing} were not reached in time"] if missing else []))


def _tell_failures(step: Step, tests: list[dict[str, Any]]) -> None:
    failures = [record for record in tests if record["outcome"] in ("failed", "begun")]
    for record in failures[:_TOLD]:
        line = record.get("line") or "its process crashed, or was ended as the time was up"
        step.tell(Figure(record["id"].removeprefix("tests/cuda/"), error=line))
    if len(failures) > _TOLD:
        step.tell(Figure("more failures", len(failures) - _TOLD, error="not listed"))
