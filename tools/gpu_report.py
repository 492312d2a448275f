"""The two pages of gpu_check.py: all that was found, as JSON and as Markdown."""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ggrun import __version__
from ggrun.devices.host_memory import host_memory
from tools.gpu_bars import verdicts
from tools.gpu_step import ROOT, Figure

NAME = "gpu_check"
EMULATED = (
    "**No card was used: this ran on the emulator, to try the tool itself. Every time and rate below is the "
    "emulator's or a stand-in's, and means nothing.**"
)
_HIDDEN = ("samples", "operations", "bytes", "bar")
"""Details that are in the JSON only."""


@dataclass
class Outcome:
    """What became of a step. word: done, failed, out of time, skipped."""

    name: str
    word: str
    seconds: float = 0.0
    budget: float = 0.0
    note: str = ""
    figures: list[Figure] = field(default_factory=list)

    @property
    def errors(self) -> int:
        """How many things went wrong."""
        return sum(bool(figure.error) for figure in self.figures)


def host() -> dict[str, Any]:
    """The machine around the card, and what ran."""
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "ggrun": f"{__version__}, commit {_commit()}",
        "host": f"{_cpu()}, {os.cpu_count()} cores, {host_memory().total / 2**30:.0f} GiB",
        "kernel": platform.release(),
        "Python": platform.python_version(),
        "command": " ".join(["python -m tools.gpu_check", *sys.argv[1:]]),
    }


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def write_pages(folder: Path, emulated: bool, facts: dict[str, Any], outcomes: Sequence[Outcome]) -> None:
    """Both, anew."""
    bars = verdicts(_figures(outcomes), emulated)
    page = {
        "tool": NAME,
        "emulated": emulated,
        **facts,
        "card": card_facts(outcomes),
        "bars": [asdict(bar) for bar in bars],
        "steps": [asdict(outcome) for outcome in outcomes],
    }
    _replace(folder / f"{NAME}.json", json.dumps(page, indent=1) + "\n")
    _replace(folder / f"{NAME}.md", markdown(emulated, facts, outcomes))


def _replace(path: Path, text: str) -> None:
    new = path.with_name(f"{path.name}.new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)


def card_facts(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What is known of the card."""
    return next((f.more for f in _figures(outcomes) if f.what == "card" and not f.error), {})


def _figures(outcomes: Iterable[Outcome]) -> list[Figure]:
    return [figure for outcome in outcomes for figure in outcome.figures]


def markdown(emulated: bool, facts: dict[str, Any], outcomes: Sequence[Outcome]) -> str:
    """The page."""
    card = card_facts(outcomes)
    parts = [f"# GPU check: {card.get('name', 'no card')}, {facts['date']}"]
    parts += [EMULATED] if emulated else []
    parts += [
        summary(emulated, outcomes),
        "\n".join(f"- {name}: {value}" for name, value in {**card, **facts}.items()),
    ]
    for outcome in outcomes:
        if shown := [figure for figure in outcome.figures if figure.what != "card" or figure.error]:
            parts += [f"## {outcome.name}", _figures_table(shown)]
    return "\n\n".join(parts) + "\n"


def summary(emulated: bool, outcomes: Sequence[Outcome]) -> str:
    """Bars and steps, as two tables."""
    found = verdicts(_figures(outcomes), emulated)
    bars = [(v.title, "" if v.found is None else percent(v.found), v.word) for v in found]
    steps = [
        (o.name, o.word, f"{o.seconds:.0f} of {o.budget:.0f}", str(len(o.figures)), str(o.errors), o.note)
        for o in outcomes
    ]
    heads = ("step", "", "seconds", "figures", "errors", "note")
    return f"{_table(('bar', 'found', ''), bars)}\n\n{_table(heads, steps)}"


def _figures_table(figures: Sequence[Figure]) -> str:
    """With a note for each method, which many figures have in common."""
    methods = list(dict.fromkeys(figure.how for figure in figures if figure.how))
    rows = []
    for figure in figures:
        note = f"[{methods.index(figure.how) + 1}]" if figure.how else ""
        value = "" if figure.value is None else f"{number(figure.value)} {figure.unit}".strip()
        share = (
            ""
            if figure.share is None
            else f"{percent(figure.share)}{' of ' + figure.of if figure.of else ''}"
        )
        rows.append((figure.what, value, share, _details(figure), note))
    notes = "\n".join(f"{i + 1}. {method}" for i, method in enumerate(methods))
    return _table(("what", "figure", "share", "", "how"), rows) + (f"\n\n{notes}" if notes else "")


def _details(figure: Figure) -> str:
    words = [f"{name} {_text(value)}" for name, value in figure.more.items() if name not in _HIDDEN]
    return "; ".join([f"**{figure.error}**"] * bool(figure.error) + words)


def _text(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(_text, value))
    return number(value) if isinstance(value, float) else str(value)


def number(x: float) -> str:
    """Three digits or more, none wasted."""
    return f"{x:.0f}" if abs(x) >= 1000 else f"{x:.3g}"


def percent(share: float) -> str:
    """A share in percent."""
    return f"{100 * share:.1f} %"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(_cell(text) for text in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "/").split())
