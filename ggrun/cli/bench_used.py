"""What a plan uses: backends, as llama-bench names them, and the memory that decode reads from."""

from dataclasses import dataclass

from ggrun.devices.base import Device
from ggrun.devices.cpu import Cpu
from ggrun.devices.local import remember
from ggrun.devices.names import DeviceName
from ggrun.errors import GgrunError, Interrupted
from ggrun.plan import Plan, host_of
from ggrun.rpc.placed import Placed

_BACKENDS = {"cuda": "CUDA", "emulated": "EMULATED", "cpu": "CPU"}
_ORDER = ("CUDA", "EMULATED", "RPC", "CPU")


@dataclass(frozen=True)
class Used:
    """Where a model is.

    backends     as "CUDA,CPU"; RPC stands for devices of workers, whatever they are
    memory       the device whose memory has all that decode reads; "" where it is not one alone
    bandwidth    of that memory, bytes a second; None where it was not measured: it is on another machine, or
                 too little of it is free
    """

    backends: str
    memory: str = ""
    bandwidth: float | None = None


Measured = dict[tuple[str, int], float]
"""Bandwidths that were measured in this run of ggrun, by devices and the CPU's threads."""


def used(placed: Placed, threads: int, measured: Measured) -> Used:
    """What a loaded model uses. The memory is measured, if that was not done before."""
    plan = placed.planned.plan
    names, memory = backends(plan), memory_of(plan)
    device = placed.devices.get(memory)
    return Used(names, memory, _bandwidth(memory, device, threads, measured) if device else None)


def _bandwidth(name: str, device: Device, threads: int, measured: Measured) -> float | None:
    key = name, threads if isinstance(device, Cpu) else 0
    if key not in measured:
        try:
            measured[key] = device.bandwidth()
        except Interrupted:
            raise
        except GgrunError:  # the model has left too little to measure with
            return None
        if name == "cpu":
            remember(threads, measured[key])
    return measured[key]


def readers(plan: Plan) -> list[str]:
    """The devices that have layers or the output. Who only embeds reads no more than a row for a token."""
    stages = [stage for stage in plan.stages[:-1] if stage.halves[0] < stage.halves[1]]
    return list(dict.fromkeys(m.device for stage in [*stages, plan.stages[-1]] for m in stage.members))


def backends(plan: Plan) -> str:
    """Those of its devices."""
    found = {"RPC" if host_of(name) else _BACKENDS[DeviceName.parse(name).kind] for name in readers(plan)}
    return ",".join(backend for backend in _ORDER if backend in found)


def memory_of(plan: Plan) -> str:
    """The device whose memory has all that decode reads; "" where it is not one alone."""
    names = {*readers(plan), *(["cpu"] if plan.kv_on_host else [])}
    return names.pop() if len(names) == 1 else ""
