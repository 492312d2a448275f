"""What is kept of devices, as tests want it: nothing at first, and nothing that the next test could see."""

from pathlib import Path

import pytest

from ggrun.devices import speeds
from ggrun.devices.cuda import links, reductions, switch_over
from ggrun.engine import split_trial

_ALL = [module._KEPT for module in (links, reductions, speeds, split_trial, switch_over)]


def nothing_kept(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """Until the test ends, a machine of which nothing was found out, with this cache folder."""
    monkeypatch.setenv("GGRUN_CACHE", str(cache))
    nothing_known(monkeypatch)


def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the test ends, a process that knows nothing yet but what is in files."""
    for kept in _ALL:
        monkeypatch.setattr(kept, "_found", {})


def another_process() -> None:
    """What comes from now on is as in a process that begins: it knows what is in files."""
    for kept in _ALL:
        kept._found.clear()
