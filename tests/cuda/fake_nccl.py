"""What ggrun calls of cupy.cuda.nccl, on the memory of fake_cupy: sums in the order of a ring, and faults."""

import ctypes
import os
import sys
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ggrun.devices.cuda import nccl
from ggrun.devices.cuda.found import Cards
from tests.cuda.fake_cupy import FakeCupy
from tests.kept import nothing_kept

ADD, FLOAT32 = 0, 7


class NcclError(RuntimeError):
    pass


@dataclass
class _Call:
    """One card's part of an all-reduce."""

    communicator: "_Communicator"
    send: int
    receive: int
    count: int
    stream: int


class _Communicator:
    def __init__(self, nccl: "FakeNccl", ranks: int, unique: tuple[int, ...], rank: int) -> None:
        assert len(unique) == 128
        assert 0 <= rank < ranks
        self.nccl, self.ranks, self.rank = nccl, ranks, rank
        self.card = nccl.cupy.devices[-1]
        self.ready = False
        nccl.opened().append(self)

    def allReduce(  # noqa: N802
        self, send: int, receive: int, count: int, kind: int, op: int, stream: int
    ) -> None:
        assert self.ready
        assert (op, kind) == (ADD, FLOAT32)
        self.nccl.opened().append(_Call(self, send, receive, count, stream))

    def abort(self) -> None:
        self.nccl.aborted.append(self.rank)
        self.ready = False
        self.nccl.held.set()


class FakeNccl:
    """The module `cupy.cuda.nccl`.

    faults        a word, or None, for each group that comes to its end
    hanging       is set when one of them blocks, or hangs
    reductions    how many values each has summed
    p2p_disabled  NCCL_P2P_DISABLE, whenever cards were connected
    """

    available = True
    NcclError = NcclError
    NCCL_SUM, NCCL_FLOAT32 = ADD, FLOAT32

    def __init__(self, cupy: FakeCupy, version: int = 22703) -> None:
        self.cupy, self._version = cupy, version
        self.faults = deque[str | None]()
        self.reductions: list[int] = []
        self.p2p_disabled: list[str] = []
        self.aborted: list[int] = []
        self.held, self.hanging, self.broken = threading.Event(), threading.Event(), False
        self.never = threading.Event()
        self._group: list[Any] | None = None

    def get_version(self) -> int:
        return self._version

    def get_unique_id(self) -> tuple[int, ...]:
        if self.broken:
            raise NcclError("NCCL_ERROR_SYSTEM_ERROR: unhandled system error")
        return (7,) * 128

    def NcclCommunicator(self, *args: Any) -> _Communicator:  # noqa: N802
        return _Communicator(self, *args)

    def groupStart(self) -> None:  # noqa: N802
        assert self._group is None
        self._group = []

    def groupEnd(self) -> None:  # noqa: N802
        calls, self._group = self.opened(), None
        fault = self.faults.popleft() if self.faults else None
        if fault == "refuses":
            raise NcclError("NCCL_ERROR_INVALID_USAGE: invalid usage\n(more)")
        if fault == "blocks":
            self.hanging.set()
            self.held.wait()
        ranks = [call.rank if isinstance(call, _Communicator) else call.communicator.rank for call in calls]
        assert ranks == list(range(len(ranks))), "one thread calls for all cards in one group"
        if isinstance(calls[0], _Communicator):
            assert all(c.ranks == len(calls) for c in calls)
            self.p2p_disabled.append(os.environ.get("NCCL_P2P_DISABLE", "0"))
            for communicator in calls:
                communicator.ready = True
        else:
            self._reduce(calls, fault)

    def opened(self) -> list[Any]:
        """The calls of the group that is open."""
        assert self._group is not None, "one by one, calls would wait for each other"
        return self._group

    def _reduce(self, calls: list[_Call], fault: str | None) -> None:
        count = calls[0].count
        assert {call.count for call in calls} == {count}
        for call in calls:
            assert self.cupy.card_of(call.stream) == call.communicator.card, "each on its own card's stream"
        self.cupy.enqueue([call.stream for call in calls], lambda: self._add(calls, fault))

    def _add(self, calls: list[_Call], fault: str | None) -> None:
        """In its turn: now, or whenever a graph comes to it."""
        count = calls[0].count
        self.reductions.append(count)
        if fault in ("hangs", "hangs on"):
            held = self.held if fault == "hangs" else self.never  # which aborting does not end
            self.cupy.hold([call.stream for call in calls], held)
            self.hanging.set()
            return
        given = [self._at(call.send, count).copy() for call in calls]
        for rank, call in enumerate(calls):
            there = self._at(call.receive, count)
            there[:] = _ring(given)
            if fault == "wrong":
                there[-1] += 1000
            if fault == "differs" and rank == 1:
                there[-1] ^= 1
            if fault == "changes":
                there[-1] ^= len(self.reductions) % 2

    def _at(self, address: int, count: int) -> np.ndarray:
        return np.frombuffer((ctypes.c_uint32 * count).from_address(address), np.uint32)


def _ring(given: list[np.ndarray]) -> np.ndarray:
    """The bits of sums: each piece begins at another rank."""
    pieces = []
    for first in range(len(given)):
        parts = [
            np.array_split(given[(first + i) % len(given)], len(given))[first] for i in range(len(given))
        ]
        total = sum((part.view(np.float32) for part in parts[1:]), parts[0].view(np.float32))
        pieces.append(total.view(np.uint32))
    return np.concatenate(pieces)


def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeNccl]:
    """A machine with four cards and NCCL, of which nothing is known."""
    cupy = FakeCupy(cards=4)
    fake = FakeNccl(cupy)
    monkeypatch.setitem(sys.modules, "cupy", cupy)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "cupy.cuda.nccl", fake)  # type: ignore[arg-type]
    nothing_kept(monkeypatch, tmp_path / "cache")
    monkeypatch.setattr(nccl, "_connected_directly", False)  # as in a process that begins
    monkeypatch.setenv("NCCL_P2P_DISABLE", "0")
    Cards.found.cache_clear()
    yield fake
    fake.held.set()
    fake.never.set()
    Cards.found.cache_clear()
