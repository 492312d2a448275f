"""What ggrun doctor finds out of a machine: what there is, what is broken, what to install or to change."""

import os
import platform
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ggrun import __version__
from ggrun.cli.terminal import compile_progress
from ggrun.devices.cuda.found import OLDEST, Cards, arch_of, nvidia_driver, version
from ggrun.devices.cuda.links import Numbers, pairs_of
from ggrun.devices.cuda.nccl import library, version_text
from ggrun.devices.cuda.reductions import reductions_of
from ggrun.devices.host_memory import host_memory
from ggrun.devices.local import local_cpu
from ggrun.devices.threads import physical_cores
from ggrun.errors import GgrunError
from ggrun.kernels import cache_home, load_cpu

_CUPY = ("cupy-cuda13x", "cupy-cuda12x", "cupy")
_FEATURES = (
    "avx2", "fma", "f16c", "avxvnni", "avx512f", "avx512bw", "avx512vl", "avx512vnni", "avx512bf16",
    "amx-int8", "dotprod", "i8mm", "sve",
)  # fmt: skip
"""What makes a difference to kernels, of what CPUs say of themselves."""
_CUDA13 = 580
"""The first driver that runs CUDA 13."""


@dataclass
class Checkup:
    """What was found.

    facts     by subject: versions, cuda, cpu, memory, cards, links, sums, cache
    broken    what was asked for or installed, and does not work
    advice    what to install or to change
    """

    facts: dict[str, Any] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)


def check_up(p2p: str) -> Checkup:
    """Look this machine over; takes some seconds, as cards are tested together. p2p: see links.py."""
    found = Checkup()
    found.facts["versions"], found.facts["cuda"] = _versions(), _cuda()
    found.facts["cpu"] = _cpu(found)
    memory = host_memory()
    found.facts["memory"] = {"total": memory.total, "available": memory.available}
    found.facts["cards"], found.facts["links"], found.facts["sums"] = [], [], []
    if cards := _cards(found):
        found.facts["cuda"] |= _cuda_versions(cards)
        found.facts["cards"] = [_card(cards, index, found) for index in range(cards.count)]
        if cards.count and not any(card["usable"] for card in found.facts["cards"]):
            found.broken.append("no card can be used: everything runs on the CPU")
        _sums(found, _links(found, p2p))
    found.facts["cache"] = _cache(found)
    return found


def _versions() -> dict[str, str]:
    versions = {"ggrun": __version__, "Python": platform.python_version(), "system": platform.platform()}
    for name in ("numpy", "numba", "llvmlite"):
        versions[name] = installed(name)
    return versions


def _cuda() -> dict[str, str]:
    """What there is for CUDA, whether it works or not."""
    versions = {}
    for name in _CUPY:
        with suppress(PackageNotFoundError):
            versions["CuPy"] = f"{installed(name)} ({name})"
    if driver := nvidia_driver():
        versions["NVIDIA driver"] = driver
    return versions


def _cuda_versions(cards: Cards) -> dict[str, str]:
    runtime = cards.cupy.cuda.runtime
    return {
        "the driver's CUDA": version(runtime.driverGetVersion()),
        "CuPy's CUDA": version(runtime.runtimeGetVersion()),
        "NCCL": _nccl() or "missing",
    }


def _nccl() -> str:
    """The version of NCCL that CuPy has found; "" for none, or one that is of no use."""
    with suppress(GgrunError):
        return version_text(int(library().get_version()))
    return ""


def _cpu(found: Checkup) -> dict[str, Any]:
    import llvmlite.binding as llvm

    features = llvm.get_host_cpu_features()
    facts: dict[str, Any] = {
        "name": _cpu_name(),
        "cores": physical_cores(),
        "features": [name for name in _FEATURES if features.get(name)],
    }
    try:
        with compile_progress():
            speeds = local_cpu(measure=True)
    except GgrunError as error:
        found.broken.append(str(error))
        return facts
    kernels = load_cpu("llvm_ir").ISA
    return facts | {"kernels": kernels, "bandwidth": speeds.bandwidth, "operations": speeds.operations}


def _cpu_name() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _cards(found: Checkup) -> Cards | None:
    """The cards of this machine; None where CUDA cannot be used."""
    if find_spec("cupy") is None:
        if driver := nvidia_driver():
            extra = "cuda13" if int(driver.partition(".")[0]) >= _CUDA13 else "cuda12"
            found.advice.append(f"there is an NVIDIA driver: pip install 'ggrun[{extra}]' to use its cards")
        else:
            found.advice.append(
                "no NVIDIA driver is loaded, so everything runs on the CPU; for a card (RTX 20 or newer) "
                "install its driver, and pip install 'ggrun[cuda13]'"
            )
        return None
    try:
        cards = Cards.found()
    except GgrunError as error:
        found.broken.append(str(error))
        return None
    if not cards.count:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        why = "" if hidden is None else f" (CUDA_VISIBLE_DEVICES is {hidden!r:.40})"
        found.advice.append(f"CUDA finds no card{why}: nvidia-smi must list it")
    return cards


def _card(cards: Cards, index: int, found: Checkup) -> dict[str, Any]:
    from ggrun.devices.cuda.cupy_driver import CupyDriver

    name = f"cuda:{index}"
    try:
        properties = cards.properties(index)
    except GgrunError as error:
        found.broken.append(str(error))
        return {"name": name, "usable": False, "reason": str(error)}
    arch = arch_of(properties)
    facts = {
        "name": name,
        "label": properties["name"].decode(errors="replace"),
        "memory": int(properties["totalGlobalMem"]),
        "capability": f"{arch / 10}",
    }
    try:
        driver = CupyDriver(index)
        facts["free"], _ = driver.free_memory()
        driver.close()
    except GgrunError as error:
        if arch >= OLDEST:
            found.broken.append(str(error))
        return facts | {"usable": False, "reason": str(error)}
    return facts | {"usable": True, "reason": ""}


def _links(found: Checkup, p2p: str) -> list[Numbers]:
    """Test how all cards that can be used copy to each other, whatever was known; those that do directly."""
    direct = []
    usable = [i for i, card in enumerate(found.facts["cards"]) if card["usable"]]
    for (one, other), pair in pairs_of(usable, anew=True).items():
        names = f"cuda:{one} and cuda:{other}"
        if pair.broken:
            found.broken.append(f"{names}: copies through the host's memory fail: {pair.broken}")
        if p2p == "on" and pair.direct is None:
            found.broken.append(f"{names}: --p2p on, and direct copies fail: {pair.reason}")
        if pair.link(p2p).direct:
            direct.append((one, other))
        for giver, taker, back in ((one, other, False), (other, one, True)):
            ends = {"from": f"cuda:{giver}", "to": f"cuda:{taker}"}
            found.facts["links"].append(ends | vars(pair.link(p2p, back)))
    found.advice += _link_advice(found)
    return direct


def _sums(found: Checkup, direct: list[Numbers]) -> None:
    """Test how all cards that can be used sum what they have in mode row, and how long it takes."""
    usable = [i for i, card in enumerate(found.facts["cards"]) if card["usable"]]
    if len(usable) < 2:
        return
    try:
        sums = reductions_of(usable, direct, anew=True)
    except GgrunError as error:
        found.broken.append(str(error))
        return
    ways = {"copies": dict(sums.copy.timed), "NCCL": dict(sums.nccl.timed)}
    sizes = sorted({size for timed in ways.values() for size in timed})
    found.facts["sums"] = [
        {"bytes": size, **{way: timed.get(size) for way, timed in ways.items()}} for size in sizes
    ]
    for way, tried in (("copies", sums.copy), ("NCCL", sums.nccl)):
        if tried.reason and found.facts["cuda"].get(way) != "missing":
            found.advice.append(f"mode row sums without {way}: {tried.reason}")


def _link_advice(found: Checkup) -> Iterator[str]:
    links = found.facts["links"]
    if any(" bytes came wrong" in link["reason"] or "no end after" in link["reason"] for link in links):
        yield (
            "direct copies fail where an IOMMU or ACS stands in their way: switch both off in the firmware's "
            "set-up, or boot with iommu=off, and ask ggrun doctor again"
        )
    if links and found.facts["cuda"]["NCCL"] == "missing":
        major = found.facts["cuda"]["CuPy's CUDA"].partition(".")[0]
        yield f"NCCL is missing, which is faster in mode row: pip install nvidia-nccl-cu{major}"


def _cache(found: Checkup) -> dict[str, Any]:
    folder = Path("~/.cache/ggrun")
    try:
        folder = cache_home()
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        found.broken.append(
            f"cannot write to the cache folder {folder} ({error.strerror}): set GGRUN_CACHE to another one"
        )
    return {"folder": str(folder), "bytes": sum(_sizes(folder))}


def _sizes(folder: Path) -> Iterator[int]:
    for path in folder.rglob("*"):
        with suppress(OSError):
            if path.is_file() and not path.is_symlink():
                yield path.stat().st_size
