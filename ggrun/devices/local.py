"""The devices of this machine as a planner sees them; speeds are measured once and kept."""

import json
import platform
import re
import time
from collections.abc import Iterable
from contextlib import closing, suppress
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from ggrun.devices.host_memory import host_memory
from ggrun.devices.names import DeviceName, refuse_twins
from ggrun.devices.threads import physical_cores
from ggrun.gguf import FORMATS, Tensor
from ggrun.kernels import cache_home
from ggrun.plan import Plan
from ggrun.plan.facts import ModelFacts
from ggrun.plan.hardware import CpuSpeeds, DeviceInfo, cpu_info, parse_devices
from ggrun.plan.options import PlanOptions
from ggrun.plan.planner import Planned, make_plan
from ggrun.plan.report import DoesNotFit, require_fit, size, with_plan

_BANDWIDTH = 20e9  # bytes a second, where none was measured: only ratios of it matter to a plan

_OF_A_PROMPT = 0.78
"""What a whole prompt reaches of its products' rate: the rest is norms, attention and the ways between."""
_MEASUREMENTS, _PAUSE = 4, 0.25  # seconds between them: others may be using the memory for a while

_PRETENDS = re.compile(r"(cpu|emulated):\d")
"""Names of what pretends to be a card, and has its memory from this machine."""

_BESIDE_A_PLAN = (
    "n_ctx", "n_ubatch", "sequences", "cache_type_k", "cache_type_v", "fit", "fit_margin", "fit_ctx",
)  # fmt: skip


def local_devices(text: str, threads: int | None = None) -> list[DeviceInfo]:
    """The devices of a text such as "cpu" or "cpu:0:2GB,cpu:1:2GB", with speeds that were measured before."""
    return parse_devices(text, local_cpu(threads))


def named_devices(names: Iterable[str], threads: int | None = None) -> list[DeviceInfo]:
    """The devices of a plan, called as it calls them; UsageError for one that there is not."""
    here, names = local_cpu(threads), list(names)
    refuse_twins([DeviceName.parse(name) for name in names])
    return [replace(parse_devices(name, here)[0], name=name) for name in names]


def planned_here(
    facts: ModelFacts, devices: str, threads: int | None, options: PlanOptions, plan: Plan | None = None
) -> Planned:
    """The plan for the devices of this machine, or the user's own, checked: DoesNotFit, or UsageError."""
    if plan is None:
        planned = make_plan(facts, local_devices(devices, threads), options)
    else:
        planned = planned_as_written(facts, devices_of(plan, threads), options, plan)
    if options.fit:
        require_fit(planned)
        require_host(planned)
    return planned


def require_host(planned: Planned) -> None:
    """DoesNotFit, when devices that pretend to be cards take more of this machine's memory than there is."""
    here = {name: use.total for name, use in planned.uses.items() if _PRETENDS.match(name)}
    here |= {"cpu": planned.uses["cpu"].total} if here and "cpu" in planned.uses else {}
    may = max(0, host_memory().available - (planned.options.fit_margin << 20))
    if (needed := sum(here.values())) > may:
        raise DoesNotFit(
            f"{planned.facts.name}: does not fit: {' and '.join(here)} need {size(needed)} together, and of "
            f"this machine's memory they may take {size(may)}: give a smaller context with -c, or take a "
            "smaller quantization"
        )


def devices_of(plan: Plan, threads: int | None = None) -> list[DeviceInfo]:
    """The devices of a plan that a user wrote, here."""
    names = dict.fromkeys(member.device for stage in plan.stages for member in stage.members)
    if plan.kv_on_host:
        names["cpu"] = None
    return named_devices(names, threads)


def planned_as_written(
    facts: ModelFacts, devices: list[DeviceInfo], options: PlanOptions, plan: Plan
) -> Planned:
    """A plan that a user wrote. The flags that say what it says count for nothing beside it."""
    plan.check(facts.config)
    sizes_only = PlanOptions(**{name: getattr(options, name) for name in _BESIDE_A_PLAN})
    return with_plan(make_plan(facts, devices, sizes_only), plan)


def local_cpu(threads: int | None = None, measure: bool = False) -> DeviceInfo:
    """This machine's CPU and memory. measure: find out its speeds, if that was not done before."""
    memory = host_memory()
    known = _kept(threads)
    if known is None and measure:
        known = _measured(threads)
        _keep(threads, known)
    return cpu_info("cpu", memory.total, memory.available, known or CpuSpeeds(_BANDWIDTH))


def here_is_known(threads: int | None) -> bool:
    """Whether the speeds of this machine were measured before."""
    return _kept(threads) is not None


def remember(threads: int | None, bandwidth: float) -> None:
    """Keep what was measured, if it is more than what is kept: less was of a moment when others ran."""
    kept = _kept(threads)
    if kept is not None and kept.bandwidth < bandwidth:
        _keep(threads, replace(kept, bandwidth=bandwidth))


def _measured(threads: int | None) -> CpuSpeeds:
    from ggrun.devices.cpu import Cpu  # which needs the kernels

    bandwidths, quantized, floats = [], [], []
    with closing(Cpu(threads)) as cpu:
        for _ in range(_MEASUREMENTS):
            bandwidths.append(cpu.bandwidth())
            quantized.append(_operations(cpu, "Q8_0"))
            floats.append(_operations(cpu, "F16"))
            time.sleep(_PAUSE)
    return CpuSpeeds(max(bandwidths), _OF_A_PROMPT * max(quantized), _OF_A_PROMPT * max(floats))


def _operations(cpu: Any, kind: str) -> float:
    """Operations a second of a product such as prompts have: 256 rows with a matrix of a format."""
    from ggrun.devices.base import Limits, Rows

    n, size, weights = 256, 2048, FORMATS[kind]
    zeros = Tensor("", (size, size), weights, np.zeros(weights.nbytes(size) * size, np.uint8))
    ops = cpu.recorder(Limits(n, 1, 1, 1))
    ops.linear(ops.input(size), cpu.weight(zeros, (0, size), (0, size)))
    program = ops.finish()
    ops.inputs.counts[Rows.TOKENS] = n
    seconds = []
    for _ in range(8):  # the first may compile
        start = time.perf_counter()
        program.run()
        seconds.append(time.perf_counter() - start)
    return 2 * n * size * size / min(seconds)


def _file(threads: int | None) -> Path:
    name = f"{platform.node()}-{threads or physical_cores()}.json".replace("/", "_")
    return cache_home() / "hardware" / name


def _kept(threads: int | None) -> CpuSpeeds | None:
    with suppress(OSError, ValueError, KeyError, TypeError):
        kept: dict[str, Any] = json.loads(_file(threads).read_text())
        speeds = CpuSpeeds(*(float(kept[field.name]) for field in fields(CpuSpeeds)))
        if speeds.bandwidth > 0 and speeds.operations >= 0 and speeds.float_operations >= 0:
            return speeds
    return None


def _keep(threads: int | None, speeds: CpuSpeeds) -> None:
    with suppress(OSError):  # measured again the next time
        file = _file(threads)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(asdict(speeds)))
