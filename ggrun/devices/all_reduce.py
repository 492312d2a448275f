"""Which way a stage's devices sum what they have: by copies, by NCCL, or by the faster one for the size."""

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress

from ggrun.devices.cuda import reductions
from ggrun.devices.cuda.device import Cuda
from ggrun.devices.cuda.nccl import NcclExchange
from ggrun.devices.exchange import AllReduce, Exchange, Members, Part, Wire
from ggrun.devices.wire import DTYPES
from ggrun.errors import GgrunError, UsageError

WAYS = ("auto", *reductions.WAYS)
"""auto: NCCL for the sizes at which a self-test of these cards has found it right, and faster."""


def check_sums(way: str, wire: str) -> None:
    """UsageError for what is no way, or cannot travel."""
    if way not in WAYS:
        raise UsageError(f"all_reduce {way!r:.40}: it must be one of {', '.join(WAYS)}")
    if wire not in DTYPES:
        raise UsageError(f"wire {wire!r:.40}: it must be one of {', '.join(DTYPES)}")


def open_all_reduce(members: Members, width: int, way: str = "auto", wire: str = "f32") -> AllReduce:
    """Sums over the members' devices, of rows of `width`.

    way     one of WAYS; nccl: GgrunError where it cannot be used
    wire    what travels: f32, or bf16, which is half of it and rounds
    """
    check_sums(way, wire)
    travels = Wire(members, width, wire)
    copies = Exchange(members, width, travels)
    if way == "copy":
        return copies
    if way == "nccl":
        return BySize(copies, NcclExchange(members, width, travels), lambda rows: True)
    found = _found(members)
    if not any(found.by_nccl(timed.nbytes) for timed in found.timed):
        return copies
    try:
        nccl = NcclExchange(members, width, travels)
    except GgrunError as refused:
        _tell(f"sums over cards go by copies: {refused}")
        return copies
    return BySize(copies, nccl, lambda rows: found.by_nccl(4 * rows * width))


class BySize:
    """Two ways, of which one is taken by the rows that there are; copies alone when NCCL was lost."""

    def __init__(self, copies: AllReduce, nccl: NcclExchange, by_nccl: Callable[[int], bool]) -> None:
        self._copies, self._nccl, self._by_nccl = copies, nccl, by_nccl

    def all_reduce(self, parts: Sequence[Part], rows: int) -> None:
        """Enqueue that the first rows of each part become the sum of all parts."""
        way = self._nccl if not self._nccl.lost and self._by_nccl(rows) else self._copies
        way.all_reduce(parts, rows)

    def forget(self) -> None:
        """Begin anew, when all devices are at rest after an error."""
        self._copies.forget()
        self._nccl.forget()


def _found(members: Members) -> reductions.Reductions:
    """What is known of sums over these devices."""
    cards = [device.driver for device, _ in members if isinstance(device, Cuda)]
    nothing = reductions.Reductions()
    return nothing if len(cards) < len(members) else reductions.kept(cards) or nothing


def _tell(line: str) -> None:
    """On stderr: a full or closed one must not stop what works."""
    if sys.stderr:
        with suppress(OSError):
            print(f"ggrun: {line}", file=sys.stderr, flush=True)
