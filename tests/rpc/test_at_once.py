"""Calls at the same time: none is waited for longer than all, and nothing that comes late is left open."""

import threading
import time
from functools import partial

import pytest

from ggrun.rpc import at_once
from ggrun.rpc.at_once import each, first


def after(seconds: float, result: str | Exception) -> str:
    time.sleep(seconds)
    if isinstance(result, Exception):
        raise result
    return result


def settles(dropped: list[str], want: list[str]) -> bool:
    deadline = time.monotonic() + 5
    while sorted(dropped) != want and time.monotonic() < deadline:
        time.sleep(0.01)
    return sorted(dropped) == want


def test_each_has_its_outcome() -> None:
    dropped, over = list[str](), threading.Event()

    def never() -> str:
        over.wait(30)
        return "late"

    begun = time.monotonic()
    a, b, late = each(
        [partial(after, 0.3, "a"), partial(after, 0.1, wrong := OSError()), never], 1.0, dropped.append
    )
    assert 0.9 < time.monotonic() - begun < 10
    assert (a, b, type(late)) == ("a", wrong, TimeoutError)
    assert dropped == []
    over.set()
    assert settles(dropped, ["late"])


def test_the_first_that_gives_something() -> None:
    dropped: list[str] = []
    calls = [partial(after, 0.0, OSError()), partial(after, 0.3, "late"), partial(after, 0.1, "a")]
    assert first(calls, 2.0, dropped.append) == "a"
    assert settles(dropped, ["late"])


def test_none_gives_anything() -> None:
    dropped: list[str] = []
    with pytest.raises(OSError, match=r"^second$"):
        first(
            [partial(after, s, OSError(which)) for s, which in ((0.2, "second"), (0.0, "first"))], 2.0, print
        )
    with pytest.raises(TimeoutError):
        first([partial(after, 0.5, "late")], 0.1, dropped.append)
    assert settles(dropped, ["late"])


def test_what_came_is_dropped_when_the_caller_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    came, dropped = threading.Event(), list[str]()

    def interrupted(*_: object) -> None:
        assert came.wait(5)
        raise KeyboardInterrupt

    def call() -> str:
        came.set()
        return "a"

    monkeypatch.setattr(at_once, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        each([call, partial(after, 0.2, "late")], 2.0, dropped.append)
    assert settles(dropped, ["a", "late"])
