"""Devices: where weights lie and programs run. One file a kind."""

from ggrun.devices.base import Device
from ggrun.errors import UsageError

KINDS = ("cpu",)


def open_device(name: str, threads: int | None = None) -> Device:
    """The device of this name; UsageError when there is none. threads: of the CPU, None for its cores."""
    if name == "cpu":
        from ggrun.devices.cpu import Cpu

        return Cpu(threads)
    raise UsageError(f"unknown device {name!r}: this ggrun has {', '.join(KINDS)}")
