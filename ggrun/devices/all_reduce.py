"""How the devices of a stage sum what they have: by one of ways.ALL_REDUCE.

What only cards need is imported where there are some: others start sooner without it.
"""

from collections.abc import Sequence

from ggrun.devices.base import Device
from ggrun.devices.exchange import AllReduce, Exchange, Members
from ggrun.devices.names import all_cards
from ggrun.devices.ways import check_sums


def find_faster_sums(devices: Sequence[Device], way: str, wire: str) -> None:
    """Find out which way is the faster one, where that is asked and not known; before a model is loaded.

    GgrunError where cards cannot sum in any way.
    """
    if all_cards(device.name for device in devices):
        from ggrun.devices.cuda.card_sums import tested_sums

        tested_sums(devices, way, wire)


def open_all_reduce(members: Members, width: int, way: str = "auto", wire: str = "f32") -> AllReduce:
    """Sums over the members' devices, of rows of `width`.

    way     one of ALL_REDUCE; nccl: GgrunError where it cannot be used
    wire    what travels: f32, or bf16, which is half of it, rounds, and goes by copies
    """
    check_sums(way, wire)
    copies = Exchange(members, width, wire)
    if way == "nccl" or (way == "auto" and all_cards(device.name for device, _ in members)):
        from ggrun.devices.cuda.card_sums import with_nccl

        return with_nccl(copies, members, width, way, wire)
    return copies
