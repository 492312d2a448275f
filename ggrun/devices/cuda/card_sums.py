"""Which way cards sum what they have: by copies, by NCCL, or by the faster one for the size."""

from collections.abc import Callable, Sequence
from itertools import combinations

from ggrun.devices.base import Device
from ggrun.devices.cuda.cupy_driver import CupyDriver
from ggrun.devices.cuda.device import Cuda
from ggrun.devices.cuda.nccl import NcclExchange
from ggrun.devices.cuda.reductions import Reductions, reductions_of
from ggrun.devices.exchange import AllReduce, Members, Part
from ggrun.devices.kept import tell
from ggrun.errors import GgrunError


def tested_sums(devices: Sequence[Device], way: str, wire: str) -> Reductions:
    """What is known of sums over these devices, where the way depends on it: cards are tested, once.

    Before a model is loaded there is room for that. GgrunError where cards cannot sum in any way.
    Sums of bfloat16 always go by copies: NCCL would round them at each hop, which nobody has asked for.
    """
    cards = {
        device.driver.index: device
        for device in devices
        if isinstance(device, Cuda) and isinstance(device.driver, CupyDriver)
    }
    if way != "auto" or wire != "f32" or len(cards) < len(devices):
        return Reductions()
    numbers = sorted(cards)
    return reductions_of(
        numbers, [(i, j) for i, j in combinations(numbers, 2) if cards[i].is_direct(cards[j])]
    )


def with_nccl(copies: AllReduce, members: Members, width: int, way: str, wire: str) -> AllReduce:
    """Sums by NCCL where that is wished, or the faster way; see open_all_reduce."""
    if way == "nccl":
        return BySize(copies, NcclExchange(members), lambda rows: True)
    found = tested_sums([device for device, _ in members], way, wire)
    if not found.ever_by_nccl:
        return copies
    try:
        nccl = NcclExchange(members)
    except GgrunError as refused:
        tell(f"sums over cards go by copies: {refused}")
        return copies
    return BySize(copies, nccl, lambda rows: found.by_nccl(4 * rows * width))


class BySize:
    """Two ways, of which one is taken by the rows that there are; copies alone when NCCL was lost."""

    def __init__(self, copies: AllReduce, nccl: NcclExchange, by_nccl: Callable[[int], bool]) -> None:
        self._copies, self._nccl, self._by_nccl = copies, nccl, by_nccl

    def all_reduce(self, parts: Sequence[Part], rows: int) -> None:
        """Enqueue that the first rows of each part become the sum of all parts."""
        self._way(rows).all_reduce(parts, rows)

    def in_graphs(self, rows: int) -> bool:
        """As the way can that is taken."""
        return self._way(rows).in_graphs(rows)

    def _way(self, rows: int) -> AllReduce:
        return self._nccl if not self._nccl.lost and self._by_nccl(rows) else self._copies

    def forget(self) -> None:
        """Begin anew, when all devices are at rest after an error."""
        self._copies.forget()
        self._nccl.forget()
