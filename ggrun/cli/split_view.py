"""What each device has and does while a text is generated: `--show-split`."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from ggrun.cli.plan_view import bar, work
from ggrun.cli.streams import say
from ggrun.engine.meter import Meter, Spent
from ggrun.plan import host_of
from ggrun.plan.hardware import short_name
from ggrun.plan.planned import Planned
from ggrun.plan.report import size

_WIDTH = 20
_PERIOD = 0.5
"""Seconds between two looks."""
_LEAST_TEXT = 5
"""Lines that the text has at least, or nothing is shown beside it."""


class SplitView:
    """A line a device: its memory, what lies on it, and where the time goes.

    In a terminal they stand below the text while it comes; everywhere they are said at its end.
    """

    def __init__(self, planned: Planned, meter: Meter) -> None:
        self._planned, self._meter = planned, meter
        self._size: os.terminal_size | None = None
        self._next = 0.0

    def lines(self) -> list[str]:
        """For people."""
        planned = self._planned
        used = [device.name for device in planned.devices if device.name in planned.uses]
        width = max(map(len, used), default=0)
        return [f"{name:<{width}}  {self._memory(name)}  {self._times(name)}" for name in used]

    def _memory(self, name: str) -> str:
        use, limit = self._planned.uses[name], self._planned.limits[name]
        return f"[{bar(use, limit, _WIDTH, sys.stderr)}] {size(use.total)} of {size(limit)}"

    def _times(self, name: str) -> str:
        if host_of(name):
            return f"on another machine  {'; '.join(work(self._planned, name))}"
        own = short_name(name)
        shares = ", ".join(f"{spent} {100 * self._meter.share(own, spent):.0f} %" for spent in Spent)
        return f"{shares}  {'; '.join(work(self._planned, name))}"

    @contextmanager
    def live(self) -> Iterator[None]:
        """Show them below what is written meanwhile, where that is a terminal."""
        self._meter.clear()
        self._next = 0.0
        try:
            yield
        finally:
            self._end()

    def refresh(self) -> None:
        """Show them anew, when it is time."""
        if time.monotonic() < self._next or not (sys.stderr.isatty() and sys.stdout.isatty()):
            return
        self._next = time.monotonic() + _PERIOD
        lines, now = self.lines(), os.get_terminal_size(sys.stderr.fileno())
        if now.lines < len(lines) + _LEAST_TEXT:
            return
        begin = "" if now == self._size else self._reserve(len(lines), now)
        self._size, first = now, now.lines - len(lines) + 1
        rows = "".join(
            f"\x1b[{first + i};1H\x1b[2K{_fitting(line, now.columns)}" for i, line in enumerate(lines)
        )
        say(f"{begin}\x1b7{rows}\x1b8", end="")

    def _reserve(self, lines: int, now: os.terminal_size) -> str:
        """Make room: text scrolls above the last lines from now on. The cursor stays where the text ends."""
        room = "\x1bD" * lines + f"\x1b[{lines}A"  # and not newlines, which go to the first column
        return f"{room}\x1b7\x1b[1;{now.lines - lines}r\x1b8"

    def _end(self) -> None:
        """Give the terminal back: it scrolls as a whole, and nothing stands below the text."""
        if self._size is not None:
            say("\x1b7\x1b[r\x1b8\x1b[J", end="")
            self._size = None


def _fitting(line: str, columns: int) -> str:
    """As much of a line as there is room for; what colours it takes none."""
    kept, room, at = [], columns - 1, 0
    while at < len(line) and room > 0:
        if line[at] == "\x1b":
            end = line.index("m", at) + 1
            kept.append(line[at:end])
            at = end
        else:
            kept.append(line[at])
            room, at = room - 1, at + 1
    return "".join(kept) + "\x1b[0m"
