"""Copies between cards that never end: the run does, with a line; and what only takes long goes on."""

import gc
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any
from weakref import ref

import numpy as np
import pytest

from ggrun.devices.base import Limits
from ggrun.devices.cuda import watch
from ggrun.devices.cuda.cupy_driver import CupyDriver
from ggrun.devices.cuda.device import Cuda
from ggrun.devices.cuda.nccl import NcclExchange
from ggrun.devices.exchange import Part
from ggrun.gguf import GGUF
from tests.cli.test_run import listen_to_ctrl_c
from tests.cuda.fake_cupy import FakeCupy
from tests.cuda.fake_nccl import FakeNccl, installed
from tests.cuda.models import engine, logits
from tests.plans import Plans
from tests.tiny import Tiny
from tests.waiting import PATIENCE, ended, until

ROOT = Path(__file__).parents[2]
OFF = "start again with --p2p off, which copies through the host's memory"
WITHOUT = "start again without one of them (-dev); ggrun doctor tests them"


@pytest.fixture
def nccl(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeNccl]:
    yield from installed(monkeypatch, tmp_path)


@pytest.fixture
def lines(nccl: FakeNccl, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What processes would end with, and soon."""
    said, before = list[str](), {*threading.enumerate()}
    monkeypatch.setattr(watch, "leave", said.append)
    for name, seconds in (("LONGEST", 0.3), ("LOOK", 0.02), ("GRACE", 0.1)):
        monkeypatch.setattr(watch, name, seconds)
    yield said
    gc.collect()
    # What still watches would end this process when that is undone.
    ended([thread for thread in {*threading.enumerate()} - before if thread.name == "ggrun-watch"])


@pytest.fixture
def never(lines: list[str]) -> Iterator[threading.Event]:
    """An event that comes when the test has ended: before what is watched would end this process, too."""
    event = threading.Event()
    yield event
    event.set()


class Connected:
    """Cards that may send each other what they have. numbers: two, or one twice, or more."""

    def __init__(self, direct: bool = True, numbers: Sequence[int] = (0, 1)) -> None:
        self.cards = [Cuda(CupyDriver(number), f"cuda:{i}") for i, number in enumerate(numbers)]
        for one, other in permutations(self.cards, 2):
            one.connect(other, direct)
        self.members = [(card, card.recorder(Limits(20, 1, 1, 1))) for card in self.cards]
        self.places = [ops.mailbox(8) for _, ops in self.members]

    def copy(self) -> None:
        self.cards[0].copy(self.places[0], 1, self.cards[1], self.places[1])

    def hold(self, cupy: FakeCupy, released: threading.Event) -> None:
        """Let no work of the first card come to its end from now on, before an event."""
        cupy.hold([self.cards[0].driver.stream.raw.ptr], released)  # type: ignore[attr-defined]


def hanging(
    cupy: FakeCupy, patch: pytest.MonkeyPatch, name: str = "memcpyPeerAsync"
) -> list[threading.Event]:
    """Let copies of a kind, in graphs too, hang until an event: while it is in the list."""
    as_ever = getattr(cupy, name)
    until_set: list[threading.Event] = []

    def hang(*args: int) -> None:
        as_ever(*args)
        cupy.made[args[-1]].do(lambda: [cupy.hold([args[-1]], event) for event in until_set])

    patch.setattr(cupy, name, hang)
    return until_set


@pytest.mark.parametrize(
    ("direct", "instead"), [(True, OFF), (False, WITHOUT)], ids=["direct", "by way of the host"]
)
def test_a_copy_that_hangs(
    direct: bool, instead: str, lines: list[str], never: threading.Event, nccl: FakeNccl,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    pair = Connected(direct)
    hanging(nccl.cupy, monkeypatch, "memcpyPeerAsync" if direct else "memcpyAsync").append(never)
    pair.copy()
    until(lambda: lines)
    assert lines[0] == f"a copy between cuda:0 and cuda:1 did not end in 0 s: {instead}"


@pytest.mark.parametrize("direct", [True, False])
def test_a_program_before_a_copy_may_take_as_long_as_it_does(
    direct: bool, lines: list[str], nccl: FakeNccl
) -> None:
    pair = Connected(direct)
    for _ in range(2):
        pair.hold(nccl.cupy, released := threading.Event())
        pair.copy()
        time.sleep(0.5)
        released.set()
        pair.cards[0].stream.synchronize()
    assert lines == []


def test_weights_may_be_on_their_way_before_a_copy(
    lines: list[str], never: threading.Event, nccl: FakeNccl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the stream that the host's part of the copy goes by; they wait for programs."""
    pair, released = Connected(direct=False), threading.Event()
    transfers: Any = pair.cards[1].driver.transfers
    nccl.cupy.hold([transfers.raw.ptr], released)
    hanging(nccl.cupy, monkeypatch, "memcpyAsync").append(never)
    pair.copy()
    time.sleep(0.5)
    assert lines == []
    released.set()
    until(lambda: lines)


def test_many_copies_may_take_long_together(lines: list[str], nccl: FakeNccl) -> None:
    """And what has ended is forgotten."""
    pair = Connected()
    end = time.monotonic() + 0.6
    while time.monotonic() < end:
        pair.copy()
        time.sleep(0.01)
    assert lines == []
    assert len(pair.cards[0].driver._watch._open._all) <= 1  # type: ignore[attr-defined]


def test_logical_devices_of_one_card_are_not_watched(nccl: FakeNccl) -> None:
    for numbers, watched in (((0, 0), False), ((0, 1), True)):
        pair = Connected(numbers=numbers)
        pair.copy()
        assert ("_watch" in vars(pair.cards[0].driver)) == watched


def test_a_graph_of_two_cards_that_hangs(
    lines: list[str], nccl: FakeNccl, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """No event inside it can be looked at: it is watched as one."""
    path, tokens = Tiny(layers=2).write(tmp_path / "model.gguf"), list(range(6))
    devices = {card.name: card for card in Connected(numbers=range(4)).cards}
    held = hanging(nccl.cupy, monkeypatch)
    split = engine(path, devices, Plans(GGUF(path), tuple(devices))["row 2"], all_reduce="copy")
    want = logits(split, tokens, 1)
    assert nccl.cupy.launched
    held.append(released := threading.Event())
    monkeypatch.setattr(watch, "leave", lambda line: (lines.append(line), released.set()))
    np.testing.assert_array_equal(logits(split, tokens, 1), want)
    assert lines[0] == f"a graph of cuda:0 and cuda:1 did not end in 0 s: {OFF}"


@pytest.mark.parametrize("on_host", [False, True])
def test_graphs_of_cards_are_short(on_host: bool, nccl: FakeNccl, tmp_path: Path) -> None:
    """With the KV cache in the host's memory they would take as long as the bus does: there are none."""
    path, tokens = Tiny(layers=2).write(tmp_path / "model.gguf"), list(range(4))
    devices = {card.name: card for card in Connected(numbers=range(4)).cards}
    plan = replace(Plans(GGUF(path), tuple(devices))["row 2"], kv_on_host=on_host)
    logits(engine(path, devices, plan, all_reduce="copy"), tokens, 1)
    graphs: Any = nccl.cupy.launched
    together = [{stream.card for stream in graph.streams()} for graph in graphs]
    assert ({0, 1} in together) != on_host


def test_cards_that_hang_even_when_nccl_is_given_up(lines: list[str], nccl: FakeNccl) -> None:
    pair = Connected()
    way = NcclExchange(pair.members)
    nccl.faults.append("hangs on")
    way.all_reduce([Part(place) for place in pair.places], 1)
    until(lambda: lines)
    nccl.never.set()
    why = "NCCL: a reduction did not end in 0 s"
    assert way.lost == f"{why}: it was given up; --all-reduce copy sums without it"
    assert lines[0] == f"{why}: --all-reduce copy sums without it"


def test_what_was_given_up_is_not_kept_alive(lines: list[str], nccl: FakeNccl) -> None:
    pair = Connected()

    def given_up() -> "ref[NcclExchange]":
        way = NcclExchange(pair.members)
        nccl.faults.append("hangs")
        way.all_reduce([Part(place) for place in pair.places], 1)
        until(lambda: way.lost)
        return ref(way)

    def is_gone() -> bool:
        gc.collect()
        return left() is None

    left = given_up()
    until(is_gone)
    assert lines == []


# ---------------------------------------------------------------- what users see


def ggrun(seconds: float, *arguments: str) -> "subprocess.Popen[str]":
    """A run over two cards whose direct copies hang."""
    command = [
        sys.executable, "-m", "tests.cuda.hanging", str(seconds), "run", "-p", "Once", "-n", "4",
        "--devices", "cuda:0,cuda:1", "--p2p", "on", "-ts", "1,1", "-c", "64", *arguments,
    ]  # fmt: skip
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=listen_to_ctrl_c,
    )  # fmt: skip


@pytest.mark.parametrize(
    "mode", [("-sm", "layer"), ("-sm", "row", "--all-reduce", "copy")], ids=["layer", "row"]
)
def test_a_run_whose_copies_hang_ends_with_a_line(mode: tuple[str, ...]) -> None:
    process = ggrun(0.5, *mode)
    out, err = process.communicate(timeout=PATIENCE)
    cards = "cuda:0 and cuda:1", "cuda:1 and cuda:0"  # who comes first
    assert (process.returncode, out) == (1, "Once")
    assert err.removeprefix("it hangs\n") in [
        f"ggrun: a copy between {both} did not end in 0 s: {OFF}\n" for both in cards
    ]


def test_ctrl_c_twice_ends_what_hangs() -> None:
    """Even where the watch does not see it."""
    process = ggrun(1000, "-sm", "layer")
    assert process.stderr
    for line in process.stderr:
        if line == "it hangs\n":
            break

    def ended() -> bool:  # two that come while the process does not run are one
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
        return process.poll() is not None

    until(ended)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    again = "it hangs\n"  # where the first one came just before: coming to rest hangs then
    assert err.removeprefix(again) == "\nggrun: given up: something does not come to its end\n"


def test_nothing_hangs_for_more_than_ten_seconds() -> None:
    """From the beginning of what hangs to the first look, the last one, and the end of what was given up."""
    assert watch.LOOK + watch.LONGEST + watch.LOOK + watch.GRACE + watch.LOOK <= 10
