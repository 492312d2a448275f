"""Streams of every kind: order, events, errors, ends."""

import gc
import os
import threading
import time
from collections.abc import Callable

import pytest

from ggrun import GgrunError
from ggrun.devices.late import Late, Schedule
from ggrun.devices.streams import INLINE, Stream, Threaded
from tests.waiting import PATIENCE, ended, in_a_fork, in_time, until, workers

KINDS = ["inline", "threaded", "late", "threaded and late", "late and threaded"]


def two(kind: str, seed: int = 0) -> tuple[Stream, Stream]:
    schedule = Schedule(seed)
    make: dict[str, Callable[[], Stream]] = {
        "inline": lambda: INLINE,
        "threaded": lambda: Threaded("test"),
        "late": lambda: Late(schedule),
    }
    first, _, second = kind.partition(" and ")
    return make[first](), make[second or first]()


@pytest.mark.parametrize("kind", KINDS)
def test_order(kind: str) -> None:
    """Each stream keeps its own order, and what waits for an event comes after it."""
    for seed in range(10):
        a, b = two(kind, seed)
        done: list[tuple[str, int]] = []

        def work(name: str, i: int, done: list[tuple[str, int]] = done) -> None:
            time.sleep(0.0005 if name == "a" else 0)
            done.append((name, i))

        for i in range(5):
            a.enqueue(lambda i=i: work("a", i))
            b.wait(a.record())
            b.enqueue(lambda i=i: work("b", i))
        in_time(b.synchronize)
        a.synchronize()
        for name in "ab":
            assert [i for n, i in done if n == name] == list(range(5))
        for i in range(5):
            assert done.index(("a", i)) < done.index(("b", i))
        a.close()
        b.close()


def fail() -> None:
    raise GgrunError("this one")


@pytest.mark.parametrize("kind", KINDS[1:])
def test_an_error_ends_what_depends_on_it(kind: str) -> None:
    a, b = two(kind)
    done: list[str] = []
    a.enqueue(fail)
    a.enqueue(lambda: done.append("a"))
    b.wait(a.record())
    b.enqueue(lambda: done.append("b"))
    for stream in (b, a):
        with pytest.raises(GgrunError, match="this one"):
            in_time(stream.synchronize)
    assert done == []
    for stream in (a, b):  # told once, and then it is good again
        stream.enqueue(lambda: done.append("again"))
        in_time(stream.synchronize)
    assert done == ["again"] * 2
    a.close()
    b.close()


@pytest.mark.parametrize("kind", KINDS[1:4])
def test_what_is_given_up_is_skipped(kind: str) -> None:
    a, b = two(kind)
    begun, go, done = threading.Event(), threading.Event(), []
    if isinstance(a, Threaded):
        a.enqueue(lambda: (begun.set(), go.wait(PATIENCE)))
        assert begun.wait(PATIENCE)  # what has not begun is skipped, and then nobody would wait for `go`
        threading.Thread(target=lambda: (until(lambda: a._worker.error), go.set()), daemon=True).start()
    a.enqueue(lambda: done.append("a"))
    b.wait(a.record())
    b.enqueue(lambda: done.append("b"))
    for stream in (a, b):
        in_time(stream.abandon)
    assert done == []
    b.enqueue(lambda: done.append("later"))
    in_time(b.synchronize)
    assert done == ["later"]
    a.close()
    b.close()


def test_an_inline_stream_raises_at_once() -> None:
    other = Threaded("test")
    other.enqueue(fail)
    with pytest.raises(GgrunError, match="this one"):
        INLINE.wait(other.record())
    other.close()


@pytest.mark.parametrize("kind", ["threaded", "late"])
def test_a_closed_stream_has_done_its_work_and_takes_no_more(kind: str) -> None:
    stream, _ = two(kind)
    done: list[int] = []
    stream.enqueue(lambda: time.sleep(0.02))
    stream.enqueue(lambda: done.append(1))
    stream.close()
    stream.close()
    assert done == [1]
    for use in (lambda: stream.enqueue(fail), stream.record, lambda: stream.wait(INLINE.record())):
        with pytest.raises(GgrunError, match="closed"):
            use()


def test_a_dropped_stream_ends_its_thread() -> None:
    before = workers()
    stream = Threaded("test")
    stream.enqueue(lambda: None)
    stream.synchronize()
    own = workers() - before
    assert len(own) == 1
    del stream
    gc.collect()
    ended(own)


def test_no_room_for_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    with pytest.raises(GgrunError, match="no room for another thread"):
        Threaded("cpu:1")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_process_has_no_streams() -> None:
    stream = Threaded("test")
    for use in (lambda: stream.enqueue(fail), stream.synchronize, stream.abandon):
        assert in_a_fork(use) == 7
    assert in_a_fork(stream.close) == 0
    stream.close()


def test_virtual_time() -> None:
    """A stream's clock counts its own work, and goes on to the events that it waits for."""
    for seed in range(10):
        schedule = Schedule(seed)
        a, b = Late(schedule), Late(schedule)
        for _ in range(3):
            a.enqueue(lambda: None, 2.0)
        event = a.record()
        a.enqueue(lambda: None, 5.0)
        b.enqueue(lambda: None, 1.0)
        b.wait(event)
        b.enqueue(lambda: None, 1.5)
        b.synchronize()
        assert schedule.now == 7.5
        a.synchronize()
        assert schedule.now == 11.0
        b.enqueue(lambda: None, 1.0)  # by a host whose clock shows 11
        b.synchronize()
        assert schedule.now == 12.0


def test_late_work_is_late_and_its_order_has_a_seed() -> None:
    def order(seed: int) -> str:
        schedule, done = Schedule(seed), []
        streams = [Late(schedule) for _ in range(3)]
        for _ in range(8):
            for name, stream in zip("abc", streams, strict=True):
                stream.enqueue(lambda name=name: done.append(name))
        assert done == []
        for stream in streams:
            stream.synchronize()
        return "".join(done)

    assert order(1) == order(1)
    assert len({order(seed) for seed in range(20)}) > 10
