"""Proofs that lines which make a stream wait are needed: each is left out, and something must go wrong."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ggrun.devices.late import Late

Line = tuple[str, int]
"""The name of a file, and the number of a line in it."""


def lines_that_wait(work: Callable[[], Any]) -> set[Line]:
    """The lines that make late streams wait while work is done."""
    lines, wait = set[Line](), Late.wait

    def noted(self: Late, event: Any) -> None:
        lines.add(_caller())
        wait(self, event)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Late, "wait", noted)
        work()
    return lines


@contextmanager
def left_out(line: Line) -> Iterator[None]:
    """A line makes no stream wait."""
    wait = Late.wait

    def without(self: Late, event: Any) -> None:
        if _caller() != line:
            wait(self, event)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Late, "wait", without)
        yield


def _caller() -> Line:
    frame = sys._getframe(2)
    return Path(frame.f_code.co_filename).name, frame.f_lineno
