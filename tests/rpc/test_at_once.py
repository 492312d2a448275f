"""Calls at the same time: none is waited for longer than all, and nothing that comes late is left open."""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, as_completed, wait
from functools import partial
from typing import Any

import pytest

from ggrun.rpc import at_once
from ggrun.rpc.at_once import each, first
from tests.waiting import PATIENCE, until


def after(event: threading.Event, result: str | Exception) -> str:
    assert event.wait(PATIENCE)
    if isinstance(result, Exception):
        raise result
    return result


@pytest.fixture
def now() -> threading.Event:
    event = threading.Event()
    event.set()
    return event


@pytest.fixture
def later() -> threading.Event:
    """What a test sets."""
    return threading.Event()


def test_each_has_its_outcome(
    now: threading.Event, later: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of those that come in time, which is counted from when two have come."""

    def two(futures: Sequence[Future[str]], seconds: float) -> Any:
        until(lambda: sum(future.done() for future in futures) == 2)
        return wait(futures, seconds)

    monkeypatch.setattr(at_once, "wait", two)
    dropped = list[str]()
    calls = [partial(after, now, "a"), partial(after, now, wrong := OSError()), partial(after, later, "late")]
    a, b, late = each(calls, 0.1, dropped.append)
    assert (a, b, type(late)) == ("a", wrong, TimeoutError)
    later.set()
    until(lambda: dropped)
    assert dropped == ["late"]


def test_the_first_that_gives_something(now: threading.Event, later: threading.Event) -> None:
    dropped: list[str] = []
    calls = [partial(after, now, OSError()), partial(after, later, "late"), partial(after, now, "a")]
    assert first(calls, PATIENCE, dropped.append) == "a"
    later.set()
    until(lambda: dropped)
    assert dropped == ["late"]


def test_none_gives_anything(
    now: threading.Event, later: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one_by_one(futures: Sequence[Future[str]], seconds: float) -> Iterator[Future[str]]:
        for future in as_completed(futures, seconds):
            yield future
            later.set()

    monkeypatch.setattr(at_once, "as_completed", one_by_one)
    calls = [partial(after, later, OSError("second")), partial(after, now, OSError("first"))]
    with pytest.raises(OSError, match=r"^second$"):
        first(calls, PATIENCE, print)


def test_the_first_comes_too_late(later: threading.Event) -> None:
    dropped: list[str] = []
    with pytest.raises(TimeoutError):
        first([partial(after, later, "late")], 0.1, dropped.append)
    later.set()
    until(lambda: dropped)
    assert dropped == ["late"]


def test_what_came_is_dropped_when_the_caller_is_interrupted(
    later: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    came, dropped = threading.Event(), list[str]()

    def interrupted(*_: object) -> None:
        assert came.wait(PATIENCE)
        raise KeyboardInterrupt

    def call() -> str:
        came.set()
        return "a"

    monkeypatch.setattr(at_once, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        each([call, partial(after, later, "late")], PATIENCE, dropped.append)
    later.set()
    until(lambda: len(dropped) == 2)
    assert sorted(dropped) == ["a", "late"]
