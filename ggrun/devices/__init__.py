"""Devices: where weights lie and programs run. One file a kind."""

import os
from collections.abc import Callable, Iterable
from contextlib import suppress

from ggrun.devices.base import Device
from ggrun.devices.names import DeviceName, refuse_twins
from ggrun.errors import GgrunError


def open_devices(
    names: Iterable[str],
    threads: int | None = None,
    p2p: str = "auto",
    uploaded: Callable[[int], None] | None = None,
) -> dict[str, Device]:
    """The devices of these names, which know of each other.

    threads   of all CPU devices together; None: one for each physical core
    p2p       how cards copy to each other: "on": directly; "off": through the host's memory; "auto": directly
              where that was tested, or is tested now (see cuda/links.py)
    uploaded  is told of each weight's bytes that have come to a card

    Several devices work at once, each in a stream of its own; one alone works in the thread that calls it.
    """
    parsed = {name: DeviceName.parse(name) for name in sorted(set(names))}
    refuse_twins(list(parsed.values()))
    crews = _divided(threads, [name for name, p in parsed.items() if p.kind == "cpu"])
    devices: dict[str, Device] = {}
    try:
        if any(p.kind == "emulated" for p in parsed.values()):
            devices |= _emulated({name: p for name, p in parsed.items() if p.kind == "emulated"})
        cards = {name: p for name, p in parsed.items() if p.kind == "cuda"}
        for name, p in cards.items():
            devices[name] = _cuda(p, uploaded)
        if len(cards) > 1:
            _connect({name: p.index or 0 for name, p in cards.items()}, devices, p2p)
        for name, crew in crews.items():
            devices[name] = _cpu(parsed[name], crew, alone=len(parsed) == 1)
    except GgrunError:
        for device in devices.values():
            device.close()
        raise
    return devices


def _divided(threads: int | None, names: list[str]) -> dict[str, int]:
    """The threads of each CPU device: one at least, equally many else."""
    if not names:
        return {}
    from ggrun.devices.threads import physical_cores

    total = threads or physical_cores()
    return {name: max(1, (total + i) // len(names)) for i, name in enumerate(reversed(names))}


def _cpu(name: DeviceName, threads: int, alone: bool) -> Device:
    from ggrun.devices.cpu import Cpu
    from ggrun.devices.streams import Threaded

    return Cpu(threads, name.short, name.limit, None if alone else Threaded(name.short))


def _cuda(name: DeviceName, uploaded: Callable[[int], None] | None) -> Device:
    from ggrun.devices.cuda.cupy_driver import CupyDriver
    from ggrun.devices.cuda.device import Cuda
    from ggrun.devices.cuda.switch_over import kept_gemm

    driver = CupyDriver(name.index or 0, name.short)
    return Cuda(driver, name.short, name.limit, kept_gemm(driver), uploaded)


def _connect(cards: dict[str, int], devices: dict[str, Device], p2p: str) -> None:
    """Let cards, given with their numbers, copy to each other."""
    from ggrun.devices.cuda.device import Cuda
    from ggrun.devices.cuda.links import connect

    opened = [(number, devices[name]) for name, number in cards.items()]
    connect([(number, card) for number, card in opened if isinstance(card, Cuda)], p2p)


def _emulated(names: dict[str, DeviceName]) -> dict[str, Device]:
    """Emulated devices whose streams are interleaved; GGRUN_EMULATED_SEED says in what order."""
    from ggrun.devices.emulated import Emulated
    from ggrun.devices.late import Schedule

    seed = 0
    with suppress(ValueError):
        seed = int(os.environ.get("GGRUN_EMULATED_SEED", "0"))
    schedule = Schedule(seed)
    return {name: Emulated(p.short, p.limit, schedule) for name, p in names.items()}
