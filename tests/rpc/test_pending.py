"""Batches that are under way: what comes of them, and for how long nothing has."""

import numpy as np
import pytest

from ggrun.errors import GgrunError
from ggrun.rpc import ggrun_pb2 as pb
from ggrun.rpc import pending
from ggrun.rpc.pending import Batches, Pending


def result(run: int, batch: int) -> pb.Result:
    return pb.Result(run=run, batch=batch, values=np.ones(2, "<f4").tobytes())


def under_way(batches: Batches, *numbers: int) -> list[Pending]:
    found = [Pending(1, 2, pb.F32) for _ in numbers]
    for number, one in zip(numbers, found, strict=True):
        batches.expect(number, one)
    return found


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


def test_patience_begins_anew_with_each_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long prompt is enqueued at once: its last batch may take an hour, when others come meanwhile."""
    clock = Clock()
    monkeypatch.setattr(pending, "time", clock)
    batches = Batches()
    first, second, third = under_way(batches, 1, 2, 3)
    clock.now = 1000.0
    assert batches.silent() < 0  # none has been sent: this machine is slow
    first.sent()
    second.sent()
    clock.now = 1500.0
    assert batches.silent() == 500.0
    assert batches.take(result(1, 1), 9)
    assert batches.silent() == 0.0
    clock.now = 2000.0
    assert batches.silent() == 500.0
    second.finish(None)  # its results have come from the worker to which they were pushed
    third.sent()
    assert batches.silent() == 0.0
    clock.now = 2100.0
    assert batches.silent() == 100.0


def test_what_comes_late_of_a_broken_run_is_dropped() -> None:
    batches, why = Batches(), GgrunError("why")
    (first,) = under_way(batches, 1)
    batches.fail(GgrunError("of another run"), 2)
    assert not first.event.done
    batches.fail(why, 1)
    (second,) = under_way(batches, 2)
    assert [first.event.error, second.event.error] == [why, why]
    assert batches.take(result(1, 1), 9)
    assert batches.take(result(1, 2), 9)
    batches.begin_run()
    assert batches.take(result(1, 2), 9)
    (third,) = under_way(batches, 3)
    assert batches.take(result(2, 3), 9)
    assert third.values.tolist() == [[1.0, 1.0]]
    assert not batches.take(result(2, 3), 9)  # twice
    batches.end(why)
    batches.begin_run()
    (fourth,) = under_way(batches, 4)
    assert fourth.event.error is why


def test_the_first_word_counts() -> None:
    """Of a result and a loss that come together, from two threads."""
    one, lost = Pending(1, 2, pb.F32), GgrunError("lost")
    one.finish(lost)
    one.finish(None)
    one.event.block()
    assert one.event.error is lost
