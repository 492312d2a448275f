"""The stream that has no thread: its work is done by who waits, in order, and once."""

import threading
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ggrun import LLM
from ggrun.devices import streams
from ggrun.devices.streams import Threaded, ThreadEvent
from ggrun.errors import GgrunError
from ggrun.rpc.on_demand import OnDemand
from ggrun.rpc.placed import RpcOptions
from tests.rpc.conftest import Start
from tests.rpc.processes import plan_of
from tests.tiny import Tiny


def test_nothing_is_done_before_somebody_waits() -> None:
    stream, done = OnDemand(), []
    stream.enqueue(lambda: done.append(1))
    event = stream.record()
    stream.enqueue(lambda: done.append(2))
    assert done == []
    event.block()
    assert done == [1]
    stream.synchronize()
    assert done == [1, 2]


def test_who_looks_takes_it_as_far_as_it_goes() -> None:
    stream, done, other = OnDemand(), [], ThreadEvent()
    stream.enqueue(lambda: done.append(1))
    stream.wait(other)
    stream.enqueue(lambda: done.append(2))
    event = stream.record()
    assert not event.done
    assert done == [1]
    other.finish(None)
    assert event.done
    assert done == [1, 2]


def test_errors_skip_what_follows_until_they_are_told() -> None:
    stream, done, other = OnDemand(), [], ThreadEvent()
    stream.wait(other)
    stream.enqueue(lambda: done.append(1))
    event = stream.record()
    other.finish(GgrunError("gone"))
    event.block()
    assert str(event.error) == "gone"
    with pytest.raises(GgrunError, match="gone"):
        stream.synchronize()
    stream.enqueue(lambda: done.append(2))
    stream.synchronize()
    assert done == [2]


def test_abandoned() -> None:
    stream, done = OnDemand(), []
    stream.enqueue(lambda: done.append(1))
    stream.abandon()
    stream.synchronize()
    assert done == []
    stream.close()
    with pytest.raises(GgrunError, match="closed"):
        stream.enqueue(lambda: None)


def test_several_wait_and_each_work_is_done_once() -> None:
    stream, done, first = OnDemand(), [], ThreadEvent()
    stream.wait(first)
    events = []
    for i in range(200):
        stream.enqueue(lambda i=i: done.append(i))
        events.append(stream.record())
    others = [Threaded(f"t{i}") for i in range(3)]
    for i, event in enumerate(events):
        others[i % 3].wait(event)
    threading.Timer(0.02, first.finish, [None]).start()
    for one in others:
        one.synchronize()
        one.close()
    assert done == list(range(200))


def test_a_mark_is_when_somebody_came(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = count()
    monkeypatch.setattr(streams, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    stream = OnDemand()
    begin = stream.mark()
    next(clock)
    end = stream.mark()
    stream.synchronize()
    assert end.since(begin) == 1


def test_late_devices_beside_a_worker(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams that nobody runs but who waits, on both sides of a hop."""
    worker, path = start("--insecure"), Tiny(layers=4).write(tmp_path / "model.gguf")
    tokens = [i % 50 for i in range(48)]
    with LLM(path, threads=1, devices="cpu", n_ubatch=4) as here:
        want = here.logits(tokens)
    plan = plan_of(path, ("emulated:0:64MB", 2), (worker.device(), 4), ("emulated:1:64MB", 8))
    for seed in range(3):
        monkeypatch.setenv("GGRUN_EMULATED_SEED", str(seed))
        rpc = RpcOptions(worker.address, insecure=1)
        with LLM(path, threads=1, plan=plan, n_ubatch=4, rpc=rpc) as there:
            assert np.array_equal(there.logits(tokens), want)
