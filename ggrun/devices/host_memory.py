"""The memory of this machine, or the part of it that the process's control groups leave (containers)."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

_GROUPS, _MOUNT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class HostMemory:
    """Bytes: of all memory, and of what can be taken without swapping."""

    total: int
    available: int


def host_memory(groups: Path = _GROUPS, mount: Path = _MOUNT) -> HostMemory:
    """The least of what the machine and each control group above this process has."""
    machine = psutil.virtual_memory()
    found = [HostMemory(int(machine.total), int(machine.available)), *_limits(groups, mount)]
    return HostMemory(min(m.total for m in found), max(0, min(m.available for m in found)))


def _limits(groups: Path, mount: Path) -> Iterator[HostMemory]:
    """The limits of the control groups of this process, of either version of Linux's interface."""
    lines: list[str] = []
    with suppress(OSError):
        lines = groups.read_text().splitlines()
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            yield from _of(mount, path, "memory.max", "memory.current", "file")
        elif "memory" in controllers.split(","):
            yield from _of(
                mount / "memory", path, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache"
            )


def _of(mount: Path, path: str, limit: str, usage: str, cached: str) -> Iterator[HostMemory]:
    """The limits of a group and of those above it. A container may see itself as the root."""
    for group in (mount / path.lstrip("/"), *(mount / path.lstrip("/")).parents):
        with suppress(OSError, ValueError, KeyError):
            most = int((group / limit).read_text())  # ValueError: "max"
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            # The cache of files is given back when memory is needed.
            used = int((group / usage).read_text()) - int(stat[cached])
            yield HostMemory(most, most - used)
        if group == mount:
            return
