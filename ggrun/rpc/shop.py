"""What a worker has for its clients, and what it says of that."""

from dataclasses import dataclass, field

from ggrun import __version__
from ggrun.plan.hardware import DeviceInfo
from ggrun.rpc import PROTOCOL
from ggrun.rpc import ggrun_pb2 as pb
from ggrun.rpc.handoff import Doors
from ggrun.rpc.ledger import Ledger, UnderWay
from ggrun.rpc.store import Library, Store


@dataclass(frozen=True)
class Shop:
    """What a worker has for its clients."""

    devices: tuple[DeviceInfo, ...]
    threads: int | None
    ledger: Ledger
    store: Store
    library: Library
    doors: Doors
    insecure: int = 0  # see WorkerOptions
    under_way: UnderWay = field(default_factory=UnderWay)

    def welcome(self) -> "pb.Reply":
        """What there is, and how much of it is free."""
        return pb.Reply(
            welcome=pb.Welcome(
                protocol=PROTOCOL,
                version=__version__,
                devices=[
                    pb.Device(
                        name=d.name, label=d.label, memory=d.memory, free=max(0, self.ledger.free(d.name)),
                        bandwidth=d.bandwidth, operations=d.operations, link=d.link,
                        float_operations=d.float_operations, unpacked=d.unpacked,
                    )
                    for d in self.devices
                ],
            )
        )  # fmt: skip
