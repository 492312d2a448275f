"""Makes a worker of this machine: its devices, memory, weights and door."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ggrun.devices.host_memory import host_memory
from ggrun.devices.local import everything, local_cpu, local_devices, shared_out
from ggrun.devices.names import DeviceName
from ggrun.errors import UsageError
from ggrun.kernels import cache_home
from ggrun.plan.hardware import DeviceInfo, no_names
from ggrun.plan.options import PlanOptions
from ggrun.rpc import PORT
from ggrun.rpc.channel import is_loopback, joined_address
from ggrun.rpc.handoff import Doors
from ggrun.rpc.keys import Identity
from ggrun.rpc.ledger import Ledger
from ggrun.rpc.server import Server
from ggrun.rpc.shop import Shop
from ggrun.rpc.store import Library, Store


@dataclass(frozen=True)
class WorkerOptions:
    """What a user says of a worker; see ggrun worker --help. Sizes are bytes.

    insecure    plain text: 0 nowhere, 1 on loopback, 2 anywhere
    """

    host: str = "127.0.0.1"
    port: int = PORT
    devices: str | None = None
    threads: int | None = None
    models: Path | None = None
    cache_size: int = 64 << 30
    cache_dir: Path | None = None
    max_memory: int | None = None
    sessions: int = 16
    insecure: int = 0
    client_ca: bytes | None = None


def offered(devices: str | None, threads: int | None, margin: int = 1024) -> list[DeviceInfo]:
    """This machine's devices as clients see them: measured, and with what may be taken of their memory.

    margin    MiB that stay free on each device that others use too

    UsageError for a description of a card, as plans are made with: clients would plan with what is not here.
    """
    text = everything() if devices is None else devices
    if strange := no_names(text):
        raise UsageError(
            f"unknown device {strange[0]!r:.40}: a worker lends what its machine has, as cuda:0, cpu or "
            "cpu:0:8GB (--list shows it)"
        )
    local_cpu(threads, measure=True)
    found = shared_out(local_devices(text, threads), PlanOptions(fit_margin=margin))
    return [_lent(device, margin) for device in found]


def _lent(device: DeviceInfo, margin: int) -> DeviceInfo:
    """A device as it is lent: a limit may be more than this machine has."""
    is_card = DeviceName.parse(device.name).kind == "cuda"
    memory = device.memory if is_card else min(device.memory, host_memory().total)
    return replace(device, memory=memory, free=device.usable(margin << 20), shared=False)


def lendable(devices: Sequence[DeviceInfo], most: int | None) -> dict[str, int]:
    """The bytes of each device that a first client could have; most: of all together, None: all."""
    ledger = _ledger(devices, most)
    return {device.name: ledger.free(device.name) for device in devices}


def _ledger(devices: Sequence[DeviceInfo], most: int | None) -> Ledger:
    return Ledger({d.name: d.free for d in devices}, most, _unused(devices))


def _unused(devices: Sequence[DeviceInfo]) -> Callable[[str], int | None]:
    """What is left of the host's memory now for devices that live in it, besides what was to stay free."""
    here = {d.name: d.free for d in devices if DeviceName.parse(d.name).kind != "cuda"}
    # What has a limit of its own leaves nothing free for others.
    spare = max(0, host_memory().available - sum(here.values())) if "cpu" in here else 0
    return lambda name: host_memory().available - spare if name in here else None


def open_worker(options: WorkerOptions, devices: Sequence[DeviceInfo], identity: Identity | None) -> Server:
    """Open the door. identity: None for plain text; UsageError where that is not allowed."""
    if identity is None and options.insecure < 2 and not is_loopback(options.host):
        raise UsageError(
            f"--insecure on {options.host}: without TLS for this machine only; give it twice for any"
        )
    if identity is None and options.client_ca is not None:
        raise UsageError("--insecure is without TLS, and so without the certificates of --client-ca")
    shop = Shop(
        devices=tuple(devices),
        threads=options.threads,
        ledger=_ledger(devices, options.max_memory),
        store=Store((options.cache_dir or cache_home()) / "tensors", options.cache_size),
        library=Library(options.models),
        doors=Doors(),
        insecure=options.insecure if identity is None else 0,
    )
    address = joined_address(options.host, options.port)
    return Server(shop, address, identity, options.client_ca, options.sessions)
