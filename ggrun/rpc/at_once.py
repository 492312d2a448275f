"""Calls that wait for other machines, made at the same time: what takes longest is all that is waited for."""

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, as_completed, wait
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")
Call = Callable[[], T]


def each(calls: Sequence[Call[T]], seconds: float, drop: Callable[[T], object]) -> list[T | BaseException]:
    """What each of them gave, or its error: TimeoutError where it took longer.

    drop    is given what comes later, and all when the caller is interrupted
    """
    futures, kept = [_begun(call) for call in calls], set[Future[T]]()
    try:
        kept = wait(futures, seconds).done
        return [f.exception() or f.result() if f in kept else TimeoutError() for f in futures]
    finally:
        _drop((future for future in futures if future not in kept), drop)


def first(calls: Sequence[Call[T]], seconds: float, drop: Callable[[T], object]) -> T:
    """What the first of them gave that gave something; `drop` is given the rest. Else the last error."""
    futures, kept = [_begun(call) for call in calls], set[Future[T]]()
    error: BaseException = TimeoutError()
    try:
        with suppress(TimeoutError):
            for future in as_completed(futures, seconds):
                if (failed := future.exception()) is None:
                    kept.add(future)
                    return future.result()
                error = failed
        raise error
    finally:
        _drop((future for future in futures if future not in kept), drop)


def _begun(call: Call[T]) -> "Future[T]":
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # whoever waits has it
            future.set_exception(error)

    # Nobody waits for it at the end of the program: an executor's threads would be waited for.
    threading.Thread(target=run, daemon=True, name="ggrun-connect").start()
    return future


def _drop(futures: Iterable["Future[T]"], drop: Callable[[T], object]) -> None:
    def dropped(future: "Future[T]") -> None:
        if future.exception() is None:
            drop(future.result())

    for future in futures:
        future.add_done_callback(dropped)
