"""Which graphs a program keeps, with a driver that notes what it is given."""

from collections.abc import Callable
from typing import Any

import pytest

from ggrun.devices.base import Rows
from ggrun.devices.cuda import program
from ggrun.devices.cuda.program import Counts, CudaProgram, Launch


class _Stream:
    def __init__(self) -> None:
        self.waits = 0

    def synchronize(self) -> None:
        self.waits += 1


class _Kernel:
    name = "kernel"


class _Driver:
    """Graphs are what was recorded in them; `done` is what the card would have done."""

    capturing = False

    def __init__(self) -> None:
        self.stream, self.done = _Stream(), list[int]()
        self._recording: list[int] | None = None

    def launch(self, kernel: Any, grid: Any, block: Any, args: tuple[int], shared: int) -> None:
        (self.done if self._recording is None else self._recording).append(args[0])

    def graph(self, record: Callable[[], None]) -> Any:
        self._recording = recorded = list[int]()
        record()
        self._recording = None

        class Graph:
            def launch(_) -> None:  # noqa: N805
                self.done.extend(recorded)

        return Graph()


def test_graphs_of_kinds_of_batches_that_came_long_ago_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "_MOST_GRAPHS", 2)
    driver: Any = _Driver()
    counts = Counts(0, 0, 0, 0, 64)

    def step(counts: Counts) -> list[Launch]:
        return [Launch(_Kernel(), (1,), (1,), (counts.rows(Rows.TOKENS),))]

    tokens = CudaProgram(driver, [step], lambda: counts, [])
    kinds = [1, 1, 2, 2, 1, 3, 3, 1, 1, 3]
    for n in kinds:
        counts = counts._replace(tokens=n)
        tokens.run()
        assert len(tokens._graphs) <= len(tokens._launches) <= 2
    assert driver.done == kinds
    assert (
        driver.stream.waits == 2
    )  # the graph of 1 went for 3, that of 2 for 1: either may have been running


def test_nothing_is_waited_for_in_a_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    """As CUDA would refuse it."""
    monkeypatch.setattr(program, "_MOST_GRAPHS", 1)
    driver: Any = _Driver()
    counts = Counts(0, 0, 0, 0, 64)
    tokens = CudaProgram(driver, [lambda _: [Launch(_Kernel(), (1,), (1,), (0,))]], lambda: counts, [])
    tokens.run()
    driver.capturing, counts = True, counts._replace(tokens=2)
    tokens.run()
    assert driver.done == [0, 0]
    assert driver.stream.waits == 0
