"""Check and time ggrun on this machine's GPU, in at most 9 minutes: python -m tools.gpu_check --out FOLDER.

Needs CuPy, pytest and hypothesis. It writes gpu_check.json and gpu_check.md: every figure, how it was
found, what failed.

ceilings  the card and its software; the bandwidth of copies, the rate of bf16 products, the bus
tests     of tests/cuda, those that are marked cuda, with --device cuda
peer      llama.cpp's reference logits (GGRUN_PEER), one and two logical devices
kernels   every family of kernels, as a share of the copy bandwidth or of the matrix rate
sums      sums over two logical devices, by copies and by NCCL: right, the same bits, how long they take
bench     ggrun bench on 8B Q4_K_M, 8B Q8_0 and 70B Q4_K_M with random weights; one and two logical devices
load      how long loading takes, beside the disk and the bus
offload   prompts by a model of which the CPU has feed-forwards: by the CPU, and by the card

Each step is a process with a time budget; one that crashes or hangs does not end the others, and what it had
found is kept. The models for the last three are made meanwhile (some 56 GB; see --scratch).
"""

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

if not __package__:  # python tools/gpu_check.py
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from ggrun.errors import GgrunError
from tools.cuda_emulator.build import compiler
from tools.gpu_report import EMULATED, NAME, Outcome, card_facts, host, summary, write_pages
from tools.gpu_step import ROOT, figures, last_line

STEPS = {
    "ceilings": 30,
    "tests": 120,
    "peer": 40,
    "kernels": 90,
    "sums": 10,
    "bench": 170,
    "load": 45,
    "offload": 30,
}
"""In this order, with the seconds that each may take; more in proportion, where there are more minutes."""
_MINUTES = 9.0
_WITH_MODELS = ("bench", "load", "offload")
_LEAST, _PAGES = 8.0, 3.0  # seconds: what a step is begun with, and what the pages need
_NAP, _MOURNING = 0.05, 10.0
_MEMORY = "/dev/shm"


class Child:
    """A step in a process; its own children are in its group, and end with it."""

    def __init__(self, name: str, settings: dict[str, Any], folder: Path) -> None:
        self.name, self.results, self._log = name, folder / f"{name}.jsonl", folder / f"{name}.log"
        self._begin, self._budget = time.monotonic(), float(settings["seconds"])
        command = [sys.executable, "-m", "tools.gpu_step", name, json.dumps(settings), str(self.results)]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def outcome(self, wait: bool = True) -> Outcome:
        """What became of it; it is waited for, but no longer than it may take."""
        while wait and self._process.poll() is None and time.monotonic() - self._begin < self._budget:
            time.sleep(_NAP)
        status = self._process.poll()
        self.kill()
        found = Outcome(self.name, "done", time.monotonic() - self._begin, self._budget)
        found.figures = figures(self.results)
        if status is None:
            found.word, found.note = "out of time", "ended with its time; what it had found is kept"
        elif status:
            found.word = "failed"
            found.note = f"status {status}: {last_line(self._log.read_text(errors='replace'))}"
        return found

    def kill(self) -> None:
        """End it, and what it started."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):  # one that hangs inside the driver may outlive this
            self._process.wait(_MOURNING)


class Check:
    """All steps of one run. folder: for what is of no interest afterwards."""

    def __init__(self, o: argparse.Namespace, folder: Path) -> None:
        self._o, self._folder = o, folder
        self._end = time.monotonic() + 60 * o.minutes - _PAGES
        self._facts, self.outcomes = host(), list[Outcome]()
        self._models = [tempfile.mkdtemp(prefix="gpu_check-", dir=parent) for parent in _scratch(o)]
        self._disk = tempfile.mkdtemp(prefix="gpu_check-", dir=o.out)
        self._maker: Child | None = None

    def run(self) -> None:
        """One step behind the other; the pages are true after each."""
        try:
            for name in self._o.steps:
                print(f"{NAME}: {name}", file=sys.stderr)
                self.outcomes.append(self._step(name))
                self._pages()
                if name == "ceilings" and any(later in self._o.steps for later in _WITH_MODELS):
                    self._maker = Child("models", self._settings(self._end - time.monotonic()), self._folder)
        finally:
            self._finish()

    def _step(self, name: str) -> Outcome:
        left, budget = self._end - time.monotonic(), STEPS[name] * max(1.0, self._o.minutes / _MINUTES)
        if left < _LEAST:
            return Outcome(name, "skipped", 0.0, budget, f"{max(0.0, left):.0f} s were left of --minutes")
        child = Child(name, self._settings(min(left, budget)), self._folder)
        try:
            found = child.outcome()
        except KeyboardInterrupt:
            self.outcomes.append(replace(child.outcome(wait=False), word="interrupted", note=""))
            raise
        if left < budget:
            found.note = f"had {left:.0f} s instead of {budget:.0f}. {found.note}".strip()
        return found

    def _settings(self, seconds: float) -> dict[str, Any]:
        known = {f.what: f.value for o in self.outcomes for f in o.figures if f.value is not None}
        return {
            "emulated": self._o.emulated,
            "seconds": seconds,
            "known": known,
            "card_bytes": card_facts(self.outcomes).get("memory, bytes", 1 << 62),
            "models": self._models,
            "disk": str(Path(self._disk).resolve()),
            "tests": self._o.tests,
        }

    def _finish(self) -> None:
        """Whatever has happened: nothing is left running or lying around, and the pages are there."""
        if self._maker:
            made = self._maker.outcome(wait=False)
            made.note = f"beside the others. {made.note}".strip()
            self.outcomes.append(made)
        for folder in (*self._models, self._disk):
            shutil.rmtree(folder, ignore_errors=True)
        self._pages()

    def _pages(self) -> None:
        write_pages(self._o.out, self._o.emulated, self._facts, self.outcomes)


def _scratch(o: argparse.Namespace) -> list[str]:
    """Where models are made: in memory, where there is room for them."""
    if o.scratch:
        return [o.scratch]
    return [*([_MEMORY] if os.access(_MEMORY, os.W_OK) else []), tempfile.gettempdir()]


def _steps(text: str) -> list[str]:
    asked = text.split(",")
    if unknown := [name for name in asked if name not in STEPS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r:.40}: there are {', '.join(STEPS)}")
    # All others are shares of what the first one measures.
    return [name for name in STEPS if name in asked or name == "ceilings"]


def _minutes(text: str) -> float:
    minutes = float(text)
    if not 0 < minutes <= 600:
        raise argparse.ArgumentTypeError(f"{text}: not between 0 and 600")
    return minutes


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """What is asked for; exits with status 2 when that makes no sense."""
    about, _, steps = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        NAME, description=about, epilog=steps, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the two pages go")
    parser.add_argument("--steps", type=_steps, default=list(STEPS), metavar="NAME,...", help="only these")
    parser.add_argument("--minutes", type=_minutes, default=_MINUTES, metavar="N", help="for all [9]")
    parser.add_argument(
        "--scratch", metavar="FOLDER", help="where models are made [memory, or temporary files]"
    )
    parser.add_argument(
        "--emulated", action="store_true", help="try the tool without a GPU; times mean nothing"
    )
    parser.add_argument("--tests", type=shlex.split, metavar="ARGUMENTS", help="pytest's, not tests/cuda")
    return parser.parse_args(argv)


def require_card(emulated: bool) -> None:
    """Exit with one line where there is nothing to check."""
    if emulated:
        if not shutil.which(compiler()):
            sys.exit(f"{NAME}: the emulator needs {compiler()}")
        return
    from ggrun.devices.cuda.found import Cards

    try:
        Cards.found().card(0)
    except GgrunError as error:
        sys.exit(f"{NAME}: no GPU to check: {error}")


def main(argv: Sequence[str] | None = None) -> None:
    """Check, write the pages, print their summary; exit status 1 if a step or a test failed."""
    o = arguments(argv)
    require_card(o.emulated)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        o.out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            check = Check(o, Path(folder))
            check.run()
    except OSError as error:
        sys.exit(f"{NAME}: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    print(
        *([EMULATED] * o.emulated),
        summary(o.emulated, check.outcomes),
        f"{o.out / NAME}.md and .json",
        sep="\n\n",
    )
    sys.exit(any(outcome.word == "failed" or outcome.errors for outcome in check.outcomes))


if __name__ == "__main__":
    main()
