"""The thread pool: the same bits with any number of threads, from any thread; sleep when there is no work."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from ggrun import GgrunError, Interrupted, UsageError
from ggrun.devices.base import Limits, Rows
from ggrun.devices.cpu import Cpu
from ggrun.devices.threads import MOST_THREADS, ThreadPool, physical_cores
from tests.waiting import ended, in_a_fork, in_time, workers

WIDTH, ROWS = 96, 7
LIMITS = Limits(tokens=ROWS, outputs=ROWS, sequences=1, pages=1)
Chain = Callable[[np.ndarray], np.ndarray]


def chain(device: Cpu, length: int = 6) -> Chain:
    """A program of operations that each need what the one before has written by other threads."""
    r = device.recorder(LIMITS)
    x = r.input(WIDTH)
    weight = device.vector(np.linspace(0.5, 2.0, WIDTH, dtype=np.float32))
    for _ in range(length):
        # Each row of y in thirds, but x is written by the row: threads meet in each other's parts.
        y = r.norm(x, weight[: WIDTH // 3], 1e-5, groups=3)
        y = r.norm(y, weight, 1e-5)
        r.add(y, x)
    program, place = r.finish(), r.place(x)

    def run(values: np.ndarray) -> np.ndarray:
        r.inputs.counts[Rows.TOKENS] = len(values)
        device.write(place, values)
        program.run()
        device.download(place, len(values), out := np.empty_like(values))
        return out

    return run


def expected(x: np.ndarray, length: int = 6) -> np.ndarray:
    """The same in numpy float64."""
    x, weight = x.astype(np.float64), np.linspace(0.5, 2.0, WIDTH)
    for _ in range(length):
        y = x.reshape(len(x), 3, -1)
        y = y / np.sqrt((y * y).mean(-1, keepdims=True) + 1e-5) * weight[: WIDTH // 3]
        y = y.reshape(x.shape)
        x = x + y / np.sqrt((y * y).mean(-1, keepdims=True) + 1e-5) * weight
    return x


def rows(seed: int) -> np.ndarray:
    n = 1 + seed % ROWS
    return np.random.default_rng(seed).standard_normal((n, WIDTH)).astype(np.float32)


@pytest.mark.parametrize("threads", [1, 2, 3, 4, 5])
def test_many_programs_in_a_row(threads: int) -> None:
    one, device = Cpu(1), Cpu(threads)
    alone, together = chain(one), chain(device)

    def work() -> None:
        for seed in range(100):
            got = together(rows(seed))
            assert np.array_equal(got, alone(rows(seed)))
            if seed < 10:
                np.testing.assert_allclose(got, expected(rows(seed)), rtol=1e-5, atol=1e-5)

    in_time(work)
    device.close()
    one.close()


def test_an_empty_program() -> None:
    device = Cpu(3)
    program = device.recorder(LIMITS).finish()
    in_time(lambda: [program.run() for _ in range(20)] and None)
    device.close()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_one_pool_from_several_threads(threads: int) -> None:
    """Each has a program of its own; they take turns on the pool."""
    device, one = Cpu(threads), Cpu(1)
    alone = [chain(one, length)(rows(length)) for length in range(1, 5)]
    failures: list[int] = []

    def many(length: int) -> None:
        program = chain(device, length)
        for _ in range(60):
            if not np.array_equal(program(rows(length)), alone[length - 1]):
                failures.append(length)

    def work() -> None:
        callers = [threading.Thread(target=many, args=(n,), daemon=True) for n in range(1, 5)]
        for caller in callers:
            caller.start()
        ended(callers)

    in_time(work)
    assert failures == []
    device.close()
    one.close()


def idles_at(share: float) -> bool:
    """Whether this process comes to take no more of a core than that."""
    for _ in range(8):  # a machine that is busy with other things may need more than one look
        time.sleep(0.05)
        before = time.process_time()
        time.sleep(0.3)
        if time.process_time() - before < 0.3 * share:
            return True
    return False


def test_idle_workers_sleep_and_wake() -> None:
    device = Cpu(3)
    program = chain(device)
    want = program(rows(1))
    assert idles_at(0.1)
    in_time(lambda: np.testing.assert_array_equal(program(rows(1)), want))
    device.close()


def test_closing_ends_the_threads() -> None:
    before = workers()
    pool = ThreadPool(4)
    own = workers() - before
    assert len(own) == 3
    pool.close()
    pool.close()
    ended(own)


def test_a_dropped_pool_ends_its_threads() -> None:
    before = workers()
    pool = ThreadPool(3)
    own = workers() - before
    del pool
    assert len(own) == 2
    ended(own)


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_a_closed_pool_says_so(threads: int) -> None:
    device = Cpu(threads)
    program = chain(device)
    program(rows(3))
    device.close()

    def work() -> None:
        with pytest.raises(GgrunError, match="closed") as caught:
            program(rows(3))
        assert "\n" not in str(caught.value)

    in_time(work)


def forever(program: Chain, want: np.ndarray) -> None:
    while True:
        np.testing.assert_allclose(program(rows(5)), want, rtol=1e-5, atol=1e-5)


def test_closing_while_others_run() -> None:
    """Each run is either whole or refused."""
    for _ in range(10):
        device = Cpu(3)
        program, want = chain(device), expected(rows(5))

        def work(program: Chain = program, want: np.ndarray = want) -> None:
            with pytest.raises(GgrunError, match="closed"):
                forever(program, want)

        closer = threading.Timer(0.02, device.close)
        closer.start()
        in_time(work)
        closer.join()


def test_closing_waits_for_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has begun still needs the workers."""
    device = Cpu(3)
    program, want = chain(device), expected(rows(6))
    program(rows(6))
    post, closer = device.pool._runtime.post, threading.Thread(target=device.close, daemon=True)

    def slow(*args: int) -> int:
        closer.start()
        time.sleep(0.05)
        return post(*args)

    monkeypatch.setattr(device.pool, "_runtime", SimpleNamespace(post=slow))
    in_time(lambda: np.testing.assert_allclose(program(rows(6)), want, rtol=1e-5, atol=1e-5))
    ended([closer])
    with pytest.raises(GgrunError, match="closed"):
        program(rows(6))


def test_more_threads_than_there_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    before, start = workers(), threading.Thread.start
    with pytest.raises(UsageError, match=str(MOST_THREADS)):
        ThreadPool(MOST_THREADS + 1)
    assert workers() == before

    def refused(thread: threading.Thread) -> None:
        if thread.name == "ggrun-3":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refused)
    with pytest.raises(GgrunError, match="no room for 5 threads"):
        ThreadPool(5)
    ended(workers() - before)  # those that did start


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_process_has_no_threads() -> None:
    device = Cpu(3)
    program = chain(device)
    program(rows(1))
    assert in_a_fork(lambda: program(rows(1)) and None) == 7
    device.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_fork_while_another_thread_computes() -> None:
    """What is locked then is locked in the child for ever."""
    device = Cpu(2)
    program = chain(device)
    with device.pool._busy.here(), device.pool._crew._wanted._cond:
        assert in_a_fork(lambda: program(rows(1)) and None) == 7
        assert in_a_fork(device.close) == 0
        assert in_a_fork(device.pool._crew.dismiss) == 0  # what the end of the process does
    program(rows(1))
    device.close()


def test_an_interrupt_stays_until_it_is_taken_back() -> None:
    device = Cpu(2)
    program, want = chain(device), expected(rows(5))
    device.interrupt()
    for _ in range(2):
        with pytest.raises(Interrupted):
            program(rows(5))
    device.resume()
    np.testing.assert_allclose(program(rows(5)), want, rtol=1e-5, atol=1e-5)
    device.close()


def test_workers_that_were_not_let_rest() -> None:
    """A Ctrl+C in the wrong moment leaves them awake: they look for work now and then, and find it."""
    device = Cpu(3)
    program = chain(device)
    want = program(rows(4))
    device.pool._crew.wake()
    assert idles_at(0.2)
    in_time(lambda: np.testing.assert_array_equal(program(rows(4)), want))
    device.close()


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "10000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, 16),
        ({"cpu.max": "9900000 100000\n"}, 16),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 16),
        ({"cpu.max": ""}, 16),
        ({}, 16),
    ],
)
def test_cores_of_a_container(
    files: dict[str, str], cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: 16)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert physical_cores(tmp_path) == cores
