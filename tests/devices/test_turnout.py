"""Threads that share their core with another program sit out."""

from itertools import pairwise

import numpy as np
import pytest

from ggrun.devices.cpu import Cpu
from ggrun.devices.threads import Turnout, physical_cores
from tests.devices.test_threads import chain, rows
from tests.waiting import in_time

JOBS = 60


def spend(turnout: Turnout, seconds: float, shared: int, job: float = 0.02) -> list[int]:
    """Jobs for so long on a machine some of whose cores are shared; how many took part in each."""
    active = []
    for _ in range(round(seconds / job)):
        active.append(turnout.active)
        busy = turnout._threads - turnout.active  # those that sit out leave their cores to the others
        turnout.note(job, 0.5 * job * max(0, shared - busy))
    return active


def test_all_threads_take_part_on_a_quiet_machine() -> None:
    assert set(spend(Turnout(4), 10.0, 0)) == {4}
    assert set(spend(Turnout(1), 10.0, 1)) == {1}


def test_a_thread_that_shares_its_core_sits_out_and_is_tried_again_less_and_less() -> None:
    turnout = Turnout(2)
    active = spend(turnout, 60.0, 1)
    assert active[:10].count(1) >= 6
    assert 0.9 < active[-1000:].count(1) / 1000 < 1.0
    # The other program ends: all take part again, and stay.
    assert spend(turnout, 20.0, 0)[-400:] == [2] * 400


def test_how_many_took_part_is_known() -> None:
    turnout = Turnout(2)
    assert turnout.mean() == 2.0  # of nothing
    active = spend(turnout, 10.0, 1)
    assert turnout.mean() == pytest.approx(sum(active) / len(active))
    turnout.note(1.0, 0.0)
    assert turnout.mean() in (1.0, 2.0)


def test_as_many_sit_out_as_share_a_core_and_come_back_one_by_one() -> None:
    turnout = Turnout(8)
    active = spend(turnout, 30.0, 3)
    assert set(active[100:]) == {5, 6}
    calm = spend(turnout, 30.0, 0)
    assert calm[-1] == 8
    for fewer, more in pairwise(calm):
        assert more - fewer in (0, 1)
    assert calm.count(7) >= 3  # a window each


def test_a_pool_knows_when_its_threads_do_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten threads for each core: nine tenths of their time they do not run."""
    noted: list[tuple[float, float]] = []
    threads = 10 * physical_cores()
    device = Cpu(threads)
    monkeypatch.setattr(Turnout, "note", lambda self, seconds, lost: noted.append((seconds, lost)))

    def work() -> None:
        program = chain(device, 10)
        for seed in range(JOBS):
            program(rows(seed))

    in_time(work)
    device.close()
    assert len(noted) == JOBS
    seconds, lost = (sum(column) for column in zip(*noted, strict=True))
    assert 0.3 * threads * seconds < lost < threads * seconds
    assert 0 < noted[-1][1] < threads * noted[-1][0]  # of that job alone


def test_those_that_sit_out_compute_nothing_and_come_back() -> None:
    one, device = Cpu(1), Cpu(3)
    alone, together = chain(one), chain(device)

    def work() -> None:
        for seed in range(300):
            device.pool._turnout.active = 1 + seed * 7 % 3
            assert np.array_equal(together(rows(seed)), alone(rows(seed)))

    in_time(work)
    device.close()
    one.close()
