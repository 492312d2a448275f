"""Sums over devices by copies: in the order of devices, the same bits everywhere, all waits needed."""

from collections.abc import Sequence
from itertools import permutations
from shutil import which

import numpy as np
import pytest

from ggrun import UsageError
from ggrun.devices import exchange as module
from ggrun.devices.all_reduce import open_all_reduce
from ggrun.devices.base import Device, Limits
from ggrun.devices.cpu import Cpu
from ggrun.devices.cuda.device import Cuda
from ggrun.devices.emulated import Emulated
from ggrun.devices.exchange import Exchange, Part
from ggrun.devices.late import Schedule
from ggrun.devices.streams import Threaded
from tests.cuda.test_reduce import from_bf16, in_order, to_bf16
from tests.waits import left_out, lines_that_wait
from tools.cuda_emulator.build import compiler
from tools.cuda_emulator.driver import EmulatedDriver

ROWS = 20
STEPS = [
    (1, ()),
    (20, ()),
    (2, (1,)),
    (17, (0,)),
    (20, (1,)),
    (2, ()),
    (18, ()),
    (1, (0,)),
    (2, ()),
    (20, ()),
]
"""Rows of each sum, and who adds nothing to it: few and many rows in turn, as prompts and tokens come."""
SMALL = 40
"""Bytes that a copy costs, so that 16 rows are worth sharing and two are not."""


def devices(kind: str, n: int, seed: int) -> list[Device]:
    """Cards copy directly with every other seed, and through the host's memory with the rest."""
    schedule = Schedule(seed)
    names = [f"{kind}:{i}" for i in range(n)]
    if kind == "emulated":
        return [Emulated(name, None, schedule) for name in names]
    if not which(compiler()):
        pytest.skip(f"the emulator needs {compiler()}")
    made = [Cuda(EmulatedDriver(schedule=schedule, name=name), name) for name in names]
    for one, other in permutations(made, 2):
        one.connect(other, direct=seed % 2 == 0)
    return list(made)


def values(n: int, width: int) -> list[list[np.ndarray]]:
    """A part of each device for each step, of sizes so different that the order of additions shows."""
    rng = np.random.default_rng(n)
    shapes = [(n, rows, width) for rows, _ in STEPS]
    return [
        list((rng.standard_normal(shape) * 10.0 ** rng.integers(-4, 5, shape)).astype(np.float32))
        for shape in shapes
    ]


def wanted(parts: Sequence[np.ndarray], empty: Sequence[int], wire: str) -> np.ndarray:
    given = [part for i, part in enumerate(parts) if i not in empty]
    return in_order(given if wire == "f32" else [from_bf16(to_bf16(part)) for part in given])


def sums(cards: Sequence[Device], width: int, wire: str) -> list[list[np.ndarray]]:
    """What each device has after each step. All is enqueued at once: nothing waits for the host."""
    n = len(cards)
    members = [(card, card.recorder(Limits(ROWS, 1, 1, 1))) for card in cards]
    sources = [[ops.mailbox(width) for _ in STEPS] for _, ops in members]
    places = [ops.place(ops.input(width)) for _, ops in members]
    way = Exchange(members, width, wire)
    given = values(n, width)
    for i, (card, _) in enumerate(members):
        for step, parts in enumerate(given):
            card.write(sources[i][step], parts[i])
        card.write(places[i], np.zeros((ROWS, width), np.float32))
    found = []
    for step, (rows, empty) in enumerate(STEPS):
        empty = tuple(i for i in empty if i < n - 1)
        for i, card in enumerate(cards):
            if i not in empty:
                card.copy(sources[i][step], rows, card, places[i])
        way.all_reduce([Part(place, i in empty) for i, place in enumerate(places)], rows)
        found.append([np.empty((rows, width), np.float32) for _ in cards])
        for card, place, out in zip(cards, places, found[-1], strict=True):
            card.download(place, rows, out)
    for card in cards:
        card.stream.synchronize()
    return found


def right(found: Sequence[Sequence[np.ndarray]], n: int, width: int, wire: str) -> bool:
    return all(
        np.array_equal(got, wanted(parts, [i for i in empty if i < n - 1], wire))
        for (_, empty), parts, everywhere in zip(STEPS, values(n, width), found, strict=True)
        for got in everywhere
    )


@pytest.mark.parametrize("wire", ["f32", "bf16"])
@pytest.mark.parametrize("n", [2, 3, 4])
@pytest.mark.parametrize("kind", ["emulated", "cuda"])
def test_the_same_bits_on_every_device(kind: str, n: int, wire: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_COPY", SMALL)
    for seed in range(20):
        assert right(sums(devices(kind, n, seed), 8, wire), n, 8, wire), seed


@pytest.mark.parametrize("wire", ["f32", "bf16"])
def test_rows_that_end_anywhere(wire: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels read four values at a time, of memory that is aligned: shares begin where it is."""
    monkeypatch.setattr(module, "_COPY", SMALL)
    assert right(sums(devices("cuda", 4, 1), 6, wire), 4, 6, wire)


def test_cards_beside_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_COPY", SMALL)
    for wire in ("f32", "bf16"):
        for seed in range(5):
            cards = [*devices("cuda", 3, seed), Cpu(1, stream=Threaded("cpu"))]
            assert right(sums(cards, 8, wire), 4, 8, wire)
            cards[-1].close()


@pytest.mark.parametrize("kind", ["emulated", "cuda"])
@pytest.mark.parametrize(("n", "expected"), [(2, 2), (3, 3), (4, 3)])
def test_a_missing_wait_is_seen(kind: str, n: int, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """For each line that makes a stream wait, some order of the streams gives a wrong sum without it."""
    monkeypatch.setattr(module, "_COPY", SMALL)
    found = lines_that_wait(lambda: sums(devices(kind, n, 0), 8, "f32"))
    lines = [line for line in found if line[0] == "exchange.py"]  # the way through the host has its own test
    assert len(lines) == expected
    for line in lines:
        with left_out(line):
            runs = (sums(devices(kind, n, seed), 8, "f32") for seed in range(20))
            assert not all(right(found, n, 8, "f32") for found in runs), f"{line} is not needed"


@pytest.mark.parametrize(
    ("n", "rows", "wire", "copies"),
    [
        (2, 64, "f32", 2),  # shares would be as many bytes, one after the other
        (3, 30, "f32", 6),
        (3, 60, "f32", 12),
        (4, 30, "f32", 12),
        (4, 40, "f32", 24),  # of a quarter of the bytes each
        (3, 64, "bf16", 6),  # the sums are float32, and would take what shares save
        (4, 64, "bf16", 12),
    ],
)
def test_shares_where_they_are_less_traffic(n: int, rows: int, wire: str, copies: int) -> None:
    cpus = [Cpu(1) for _ in range(n)]
    members = [(cpu, cpu.recorder(Limits(64, 1, 1, 1))) for cpu in cpus]
    parts = [Part(ops.mailbox(1024)) for _, ops in members]
    made = []
    for cpu in cpus:
        copy = cpu.copy
        cpu.copy = lambda *args, copy=copy: (made.append(args[1]), copy(*args))  # type: ignore[method-assign]
    open_all_reduce(members, 1024, "copy", wire).all_reduce(parts, rows)
    assert len(made) == copies
    assert sum(made) == (copies * rows if copies == n * (n - 1) else 2 * (n - 1) * rows)
    for cpu in cpus:
        cpu.close()


def test_after_an_error_nothing_is_waited_for() -> None:
    cards = devices("emulated", 2, 0)
    members = [(card, card.recorder(Limits(4, 1, 1, 1))) for card in cards]
    parts = [Part(ops.mailbox(8)) for _, ops in members]
    way = Exchange(members, 8)

    def broken() -> None:
        raise RuntimeError("broken")

    cards[0].stream.enqueue(broken)
    way.all_reduce(parts, 1)
    for card in cards:
        card.stream.abandon()
    way.forget()
    for card, part in zip(cards, parts, strict=True):
        card.write(part.place, np.ones((1, 8), np.float32))
    way.all_reduce(parts, 1)
    out = np.empty((1, 8), np.float32)
    cards[1].download(parts[1].place, 1, out)
    cards[1].stream.synchronize()
    np.testing.assert_array_equal(out, 2)


def test_ways_and_wires_that_there_are_not() -> None:
    cpus = [Cpu(1) for _ in range(9)]
    members = [(cpu, cpu.recorder(Limits(1, 1, 1, 1))) for cpu in cpus]
    with pytest.raises(UsageError, match=r"^all_reduce 'ring': it must be one of auto, nccl, copy$"):
        open_all_reduce(members, 8, "ring")
    with pytest.raises(UsageError, match=r"^wire 'f16': it must be one of f32, bf16$"):
        open_all_reduce(members, 8, "copy", "f16")
    with pytest.raises(UsageError, match=r"^all_reduce nccl sums float32: leave out wire bf16"):
        open_all_reduce(members, 8, "nccl", "bf16")
    with pytest.raises(UsageError, match=r"^bf16 on the wire: 9 devices share rows, it takes 8$"):
        open_all_reduce(members, 8, "copy", "bf16")
    for cpu in cpus:
        cpu.close()
