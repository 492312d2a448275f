"""How far uploads have come; and how a terminal shows it."""

import sys

import pytest

from ggrun.cli import terminal
from ggrun.cli.terminal import ShownProgress
from ggrun.devices.progress import Uploads


def test_uploads_are_counted_from_begin_to_end() -> None:
    told: list[tuple[str, int, int]] = []
    uploads = Uploads(lambda *what: told.append(what))
    uploads(5)  # of a trial
    assert told == []
    uploads.begin(100)
    uploads(40)
    uploads(70)  # never all, before the end
    uploads.end()
    uploads(5)
    assert told == [("loading", 40, 100), ("loading", 99, 100), ("loading", 100, 100)]


def test_nothing_is_told_where_nothing_is_uploaded() -> None:
    uploads = Uploads(pytest.fail)
    uploads.begin(100)
    uploads.end()


@pytest.mark.parametrize("quiet", [False, True])
def test_elsewhere_than_in_a_terminal_it_is_a_line_or_nothing(
    quiet: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    show = ShownProgress(only_in_terminals=quiet)
    for done in (1 << 20, 2 << 20, 3 << 20):
        show("sending", done, 3 << 20)
    assert capsys.readouterr().err == ("" if quiet else "sending: 3 MiB\n")


def test_less_than_a_mebibyte_is_not_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    ShownProgress()("hashing", 1, 100)
    assert capsys.readouterr().err == "hashing: 1 MiB\n"


def test_in_a_terminal_it_is_a_line_that_goes_away(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    now = iter([10.0, 10.0, 10.05, 11.0, 11.0, 11.0])
    monkeypatch.setattr(terminal.time, "monotonic", lambda: next(now))
    show = ShownProgress()
    for done in (1, 2, 3):
        show("loading", done << 20, 4 << 20)
    assert terminal._in_line
    shown = capsys.readouterr().err
    assert shown == "\rloading: 1 of 4 MiB\rloading: 3 of 4 MiB"
    show("loading", 4 << 20, 4 << 20)
    assert capsys.readouterr().err == terminal._CLEARED
    assert not terminal._in_line
