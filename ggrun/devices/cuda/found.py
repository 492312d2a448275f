"""Which cards there are; and when there are none, one line that says what to install or to change."""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ggrun import __version__
from ggrun.errors import GgrunError, UsageError

OLDEST = 75
"""The compute capability, times ten, that kernels need: Turing's, the first with int8 tensor cores."""

_NO_DEVICE, _OLD_DRIVER = 100, 35  # cudaErrorNoDevice, cudaErrorInsufficientDriver
_DRIVER = Path("/proc/driver/nvidia/version")
_VERSION = re.compile(r"Kernel Module.*?\s(\d+(?:\.\d+)+)")
_STATE = ("/proc/sys/kernel/osrelease", "/proc/cmdline")
_IOMMU = Path("/sys/kernel/iommu_groups")
_INSTALL = "pip install 'ggrun[cuda13]' (driver 580 or newer) or 'ggrun[cuda12]'"


@dataclass(frozen=True)
class Card:
    """What CUDA says of a card."""

    name: str
    arch: int
    multiprocessors: int
    l2_bytes: int  # the second-level cache
    identity: str  # which card it is, and in which slot


class Cards:
    """The cards of this machine."""

    def __init__(self) -> None:
        self.cupy = _cupy()
        self.count = _count(self.cupy)

    @staticmethod
    @cache
    def found() -> "Cards":
        """They are looked for once. GgrunError where CUDA cannot be used."""
        return Cards()

    def usable(self, index: int) -> bool:
        """Whether it is new enough, and answers."""
        try:
            self.card(index)
        except GgrunError:
            return False
        return True

    def card(self, index: int) -> Card:
        """One of them; UsageError when there are not so many, GgrunError when it is too old, or lost."""
        if index >= self.count:
            raise UsageError(f"cuda:{index}: there are {self.count} CUDA cards, counted from 0")
        properties = self.properties(index)
        name, arch = properties["name"].decode(errors="replace"), arch_of(properties)
        if arch < OLDEST:
            raise GgrunError(
                f"cuda:{index} ({name}): its compute capability is {arch / 10}, "
                f"ggrun needs {OLDEST / 10} (RTX 20, T4) or newer"
            )
        identity = f"{name} {properties.get('uuid', b'').hex()} {properties['slot']}"
        return Card(name, arch, properties["multiProcessorCount"], properties["l2CacheSize"], identity)

    def properties(self, index: int) -> dict[str, Any]:
        """What CUDA says of a card, and its `slot`; GgrunError where it does not answer."""
        runtime = self.cupy.cuda.runtime
        try:
            return {**runtime.getDeviceProperties(index), "slot": runtime.deviceGetPCIBusId(index)}
        except runtime.CUDARuntimeError as error:
            line = str(error).splitlines()[0]
            raise GgrunError(f"cuda:{index}: {line}: nvidia-smi must list it") from None


def arch_of(properties: dict[str, Any]) -> int:
    """The compute capability, times ten."""
    return 10 * int(properties["major"]) + int(properties["minor"])


def _cupy() -> Any:
    try:
        import cupy

        is_hip = cupy.cuda.runtime.is_hip  # of what is only half installed, too, `import cupy` may be good
    except ModuleNotFoundError as error:
        if error.name != "cupy":
            raise GgrunError(f"CuPy cannot be used: {error}: {_INSTALL}") from None
        raise GgrunError(f"CUDA devices need CuPy, which is not installed: {_INSTALL}") from None
    except Exception as error:  # a wrong build fails in many ways
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise GgrunError(f"CuPy cannot be used: {line}: {_INSTALL}") from None
    if is_hip:
        raise GgrunError(f"this CuPy is built for ROCm, not for CUDA: pip uninstall it, and {_INSTALL}")
    return cupy


def _count(cupy: Any) -> int:
    runtime = cupy.cuda.runtime
    try:
        return int(runtime.getDeviceCount())
    except runtime.CUDARuntimeError as error:
        status, line = error.status, str(error).splitlines()[0]
    if status == _NO_DEVICE:
        return 0
    if status == _OLD_DRIVER:
        if not (driver := runtime.driverGetVersion()):
            raise GgrunError("CUDA: no NVIDIA driver is loaded: install it; nvidia-smi must list the card")
        needed = runtime.runtimeGetVersion()
        raise GgrunError(
            f"CUDA: the driver is for CUDA {version(driver)}, this CuPy needs {version(needed)}: "
            "update the driver, or take 'ggrun[cuda12]' instead of 'ggrun[cuda13]'"
        )
    raise GgrunError(f"CUDA: {line}")


def version(number: int) -> str:
    """A version of CUDA in words: 13.1 for 13010."""
    return f"{number // 1000}.{number % 1000 // 10}"


def nvidia_driver() -> str:
    """The version of the NVIDIA driver that is loaded; "" for none."""
    with suppress(OSError):
        found = _VERSION.search(_DRIVER.read_text(errors="replace"))
        return found[1] if found else ""
    return ""


def usable_cards() -> list[int]:
    """The cards that can be used; none where CuPy is missing or finds none: then nobody asked for one."""
    if find_spec("cupy") is None:
        return []
    try:
        found = Cards.found()
        return [index for index in range(found.count) if found.usable(index)]
    except GgrunError:
        return []


def key_of(cards: Sequence[int], *more: str) -> str:
    """What makes cards and the ways between them: another driver or IOMMU is another way."""
    there = [Cards.found().card(number).identity for number in cards]
    driver = [str(Cards.found().cupy.cuda.runtime.driverGetVersion()), nvidia_driver()]
    return sha256("\n".join([*there, *driver, __version__, *_machine(), *more]).encode()).hexdigest()[:24]


def _machine() -> list[str]:
    """What of the machine decides whether cards reach each other."""
    found = []
    for file in _STATE:
        with suppress(OSError):
            found.append(Path(file).read_text(errors="replace"))
    with suppress(OSError):
        found.append(str(len(list(_IOMMU.iterdir()))))
    return found
