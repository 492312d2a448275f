"""One graph of several cards: its order among other work, its rules, what CuPy is told, what fails."""

import sys
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ggrun import GgrunError
from ggrun.arch.config import Config
from ggrun.devices.base import Limits
from ggrun.devices.cuda import dependent, joint, program
from ggrun.devices.cuda.cupy_driver import CupyDriver
from ggrun.devices.cuda.device import Cuda
from ggrun.devices.cuda.driver import OutOfMemory
from ggrun.devices.cuda.found import Cards
from ggrun.devices.cuda.joint import JointGraphs
from ggrun.devices.exchange import Exchange, Part
from ggrun.devices.late import Schedule
from ggrun.gguf import GGUF
from tests.cuda.fake_cupy import FakeCupy
from tests.cuda.fake_streams import Capture
from tests.cuda.models import cards, engine
from tests.cuda.test_dependent import Library
from tests.cuda.test_row import row
from tests.tiny import Tiny
from tests.waits import left_out, lines_that_wait
from tools.cuda_emulator.driver import EmulatedDriver, Peers
from tools.cuda_emulator.kernels import KernelError

WIDTH, ROWS = 8, 4
KINDS = [None, 1, 1, 1, None, 2, 1, 2, 2, None, 1, 2]
"""What each step is called: None is never recorded, the others are the second time they come."""
SEEDS = range(15)


class Sums:
    """Cards that sum what they were given, one step after the other, with no host between: [step, card]."""

    def __init__(self, seed: int, n: int = 3, refuse: bool = False) -> None:
        schedule = Schedule(seed)
        self.devices = [
            Cuda(EmulatedDriver(schedule=schedule, name=f"cuda:{i}"), f"cuda:{i}") for i in range(n)
        ]
        for one, other in permutations(self.devices, 2):
            one.connect(other, direct=seed % 2 == 0)
        members = [(device, device.recorder(Limits(ROWS, 1, 1, 1))) for device in self.devices]
        self._given = [ops.mailbox(WIDTH) for _, ops in members]
        self._keep = members
        self._parts = [Part(ops.mailbox(WIDTH)) for _, ops in members]
        self._sources = [[ops.mailbox(WIDTH) for _ in KINDS] for _, ops in members]
        self._sums = Exchange(members, WIDTH)
        drivers = [device.driver for device in self.devices]
        if refuse:
            drivers[0] = Refuses(drivers[0])
        self.graphs = JointGraphs(drivers, self._sums)

    def _work(self) -> None:
        for device, given, part in zip(self.devices, self._given, self._parts, strict=True):
            device.copy(given, ROWS, device, part.place)
        self._sums.all_reduce(self._parts, ROWS)

    def right(self) -> bool:
        """Whether each card has each sum."""
        rng = np.random.default_rng(1)
        values = rng.integers(-9, 9, (len(KINDS), len(self.devices), ROWS, WIDTH)).astype(np.float32)
        for step, parts in enumerate(values):
            for device, sources, part in zip(self.devices, self._sources, parts, strict=True):
                device.write(sources[step], part)
        found = np.zeros_like(values)
        for step, kind in enumerate(KINDS):
            for device, sources, given in zip(self.devices, self._sources, self._given, strict=True):
                device.copy(sources[step], ROWS, device, given)
            self.graphs.run(kind, self._work)
            for device, part, out in zip(self.devices, self._parts, found[step], strict=True):
                device.download(part.place, ROWS, out)
        for device in self.devices:
            device.stream.synchronize()
        return bool((found == values.sum(1, keepdims=True)).all())


class Refuses:
    """A driver of a card that enters no graph."""

    def __init__(self, driver: EmulatedDriver) -> None:
        self.stream = driver.stream

    def graph(self, record: Any) -> None:
        raise GgrunError("no graphs")


@pytest.fixture(autouse=True)
def nothing_told() -> None:
    joint._tell.cache_clear()


# ---------------------------------------------------------------- the order of things


def test_among_other_work() -> None:
    for seed in SEEDS:
        assert Sums(seed).right(), seed


def test_the_second_time_is_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    sums, worked = Sums(0), []
    work = sums._work
    monkeypatch.setattr(sums, "_work", lambda: (worked.append(1), work()))
    assert sums.right()
    assert len(worked) == KINDS.count(None) + 2 * 2


def test_each_wait_is_needed() -> None:
    ours = [line for line in lines_that_wait(lambda: Sums(0).right()) if line[0] == "joint.py"]
    assert len(ours) == 2  # the others for the first one, and it for them
    for line in ours:
        with left_out(line):
            assert not all(went_well(seed) for seed in SEEDS), f"{line} is not needed"


def went_well(seed: int) -> bool:
    sums = Sums(seed)
    try:
        return sums.right() and not sums.graphs._refused
    except KernelError:  # the emulator sees it too
        return False


def test_no_graph_can_be_had(capsys: pytest.CaptureFixture[str]) -> None:
    """Then all goes on piece by piece, in good order, and the user knows why it is slow."""
    for seed in SEEDS:
        assert Sums(seed, refuse=True).right()
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["ggrun: tokens go without graphs of several cards, which is slower: no graphs"]  # once


def test_no_room_for_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then that kind of work goes without, and is not tried at each token; others have theirs."""
    sums, tries = Sums(0), []
    recorded = sums.graphs._recorded

    def short(enqueue: Any) -> Any:
        tries.append(1)
        if len(tries) == 1:
            raise OutOfMemory("no room")
        return recorded(enqueue)

    monkeypatch.setattr(sums.graphs, "_recorded", short)
    assert sums.right()
    assert len(tries) == 2
    assert [graph is None for graph in sums.graphs._graphs.values()] == [True, False]


def test_graphs_are_as_many_as_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "_MOST_GRAPHS", 1)
    sums = Sums(0)
    assert sums.right()
    assert len(sums.graphs._graphs) <= len(sums.graphs._enqueued) == 1


def test_after_an_error_all_begins_anew() -> None:
    """Another way to sum may be taken then, which was never enqueued: it is not recorded at once."""
    sums = Sums(0)
    assert sums.right()
    assert sums.graphs._graphs
    sums.graphs.forget()
    assert not sums.graphs._graphs
    assert not sums.graphs._enqueued


def test_what_is_waited_for_before_a_recording_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """If nothing comes of it, sums begin anew in the middle of others."""
    recorded = JointGraphs._recorded

    def without(self: JointGraphs, enqueue: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(self, "_join", lambda: None)
            patch.setattr(self, "_fork", lambda: None)
            return recorded(self, enqueue)

    monkeypatch.setattr(JointGraphs, "_recorded", without)
    assert not all(Sums(seed, refuse=True).right() for seed in SEEDS)


# ---------------------------------------------------------------- what the emulator sees


def pair(peers: Peers = Peers.WORK) -> tuple[EmulatedDriver, EmulatedDriver]:
    schedule = Schedule(1)
    a, b = (EmulatedDriver(schedule=schedule, name=name, peers=peers) for name in "ab")
    return a, b


def fork(a: EmulatedDriver, b: EmulatedDriver) -> None:
    b.stream.wait(a.stream.record())


@pytest.mark.parametrize("after", [False, True])
def test_a_stream_that_nobody_waits_for(after: bool) -> None:
    a, b = pair()
    memory = b.allocate(4)

    def record() -> None:
        fork(a, b)
        if after:
            fork(b, a)
        b.fill(memory.address, 1, 4)

    with pytest.raises(KernelError, match="not all streams that are in it were waited for"):
        a.graph(record)
    b.fill(memory.address, 1, 4)  # they take work again
    for driver in (a, b):
        assert not driver.capturing
        driver.stream.synchronize()


def test_events_of_outside_and_of_inside() -> None:
    a, b = pair()
    before = b.stream.record()
    with pytest.raises(KernelError, match="waits for an event of outside"):
        a.graph(lambda: a.stream.wait(before))
    inside: list[Any] = []
    a.graph(lambda: inside.append(a.stream.record()))
    with pytest.raises(KernelError, match="waits for an event of a graph"):
        b.stream.wait(inside[0])


def test_the_host_cannot_wait_inside() -> None:
    a, _ = pair()
    with pytest.raises(KernelError, match="the host waits"):
        a.graph(a.stream.synchronize)


def test_a_graph_is_in_the_order_of_its_first_stream_alone() -> None:
    """So what other cards were given before and after has to wait for it, and it for them."""
    went_wrong = False
    for seed in range(20):
        schedule = Schedule(seed)
        a, b = (EmulatedDriver(schedule=schedule, name=name) for name in "ab")
        memory = b.allocate(1)

        def record(a: EmulatedDriver = a, b: EmulatedDriver = b, address: int = memory.address) -> None:
            fork(a, b)
            b.fill(address, 2, 1)
            fork(b, a)

        graph = a.graph(record)
        b.fill(memory.address, 1, 1)
        graph.launch()
        found = np.zeros(1, np.uint8)
        b.download(found, memory.address)
        for driver in (a, b):
            driver.stream.synchronize()
        went_wrong = went_wrong or found[0] != 2
    assert went_wrong


# ---------------------------------------------------------------- as CuPy is called


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCupy]:
    """Three cards of Hopper, and a driver that is new enough for dependent launches."""
    fake = FakeCupy(cards=3, major=9)
    fake.driver_version = 12030
    monkeypatch.setitem(sys.modules, "cupy", fake)
    Cards.found.cache_clear()
    yield fake
    Cards.found.cache_clear()


@pytest.fixture(autouse=True)
def library(cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch) -> Library:
    library = Library(cupy)
    monkeypatch.setattr(dependent, "driver_library", lambda: library)
    return library


def real(n: int, direct: bool = True) -> dict[str, Any]:
    made = {f"cuda:{i}": Cuda(CupyDriver(i), f"cuda:{i}") for i in range(n)}
    for one, other in permutations(made.values(), 2):
        one.connect(other, direct)
    return made


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("n", [2, 3])
def test_tokens_of_several_cards(
    n: int, direct: bool, cupy: FakeCupy, library: Library, tmp_path: Path
) -> None:
    """From the second token on all is one graph, in which kernels begin early right behind others."""
    path = Tiny(layers=2, heads=8, kv_heads=4).write(tmp_path / "model.gguf")
    devices = real(n, direct)
    plan = row(Config.from_gguf(GGUF(path)), list(devices))
    split, emulated = engine(path, devices, plan, all_reduce="copy"), engine(path, cards(n), plan)
    cupy.launched.clear()
    for token in range(3, 9):
        np.testing.assert_array_equal(split.decode([token]), emulated.decode([token]))
    assert len(cupy.launched) == 5
    assert len(set(cupy.launched)) == 1
    assert library.launched > 20


def test_an_interrupt_when_a_recording_has_just_begun(cupy: FakeCupy) -> None:
    """The stream takes work again; and what was refused for two cards is not for one."""
    driver = CupyDriver(0)
    begin = driver.stream.raw.begin_capture

    def interrupted() -> None:
        begin()
        raise KeyboardInterrupt

    driver.stream.raw.begin_capture = interrupted
    with pytest.raises(KeyboardInterrupt):
        driver.graph(lambda: None)
    del driver.stream.raw.begin_capture
    assert not driver.capturing
    memory = driver.allocate(4)
    driver.graph(lambda: driver.fill(memory.address, 1, 4)).launch()


def test_a_recording_that_cuda_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Because there are two cards in it: those of one card are taken."""
    path = Tiny(layers=2, heads=8, kv_heads=4).write(tmp_path / "model.gguf")
    devices = real(2)
    plan = row(Config.from_gguf(GGUF(path)), list(devices))
    split, emulated = engine(path, devices, plan, all_reduce="copy"), engine(path, cards(2), plan)
    monkeypatch.setattr(Capture, "is_joined", lambda self: len(self.streams()) < 2)
    for token in range(4):
        np.testing.assert_array_equal(split.decode([token]), emulated.decode([token]))
    assert capsys.readouterr().err.splitlines() == [
        "ggrun: tokens go without graphs of several cards, which is slower: cuda:0 (Fake): a graph: "
        "cudaErrorStreamCaptureUnjoined"
    ]
    assert all(device.driver._early for device in devices.values())  # it was not for that
