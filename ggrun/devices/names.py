"""Names of devices: cpu, cpu:1, cpu:1:2GB, emulated:0:512MB; those of other machines: host:port/cuda:0."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ggrun.errors import UsageError

KINDS = ("cpu", "emulated", "cuda")
_NAME = re.compile(r"(?P<kind>[a-z]+)(:(?P<index>\d{1,3}))?(:(?P<size>\d+(\.\d+)?)(?P<unit>[KMGT]?)i?B)?")
_UNITS = {unit: 1 << (10 * i) for i, unit in enumerate(("", "K", "M", "G", "T"))}


@dataclass(frozen=True)
class DeviceName:
    """A kind of device, which one of them, and how much of its memory may be taken."""

    kind: str
    index: int | None
    limit: int | None

    @property
    def short(self) -> str:
        """The name without the limit, which no other device has."""
        return self.kind if self.index is None else f"{self.kind}:{self.index}"

    @classmethod
    def parse(cls, text: str) -> "DeviceName":
        """UsageError for a kind that there is not, or a limit that is none. A GB is 2^30 bytes."""
        found = _NAME.fullmatch(text)
        if found is None or found["kind"] not in KINDS:
            raise UsageError(
                f"unknown device {text!r:.60}: there are {', '.join(KINDS)}, as in cpu, cuda:0, cpu:1:2GB"
            )
        index, size = found["index"], found["size"]
        if found["kind"] == "cuda" and index is None:
            raise UsageError(f"device {text!r:.60}: say which card, as cuda:0")
        limit = None if size is None else int(float(size) * _UNITS[found["unit"]])
        return cls(found["kind"], None if index is None else int(index), limit)


def refuse_twins(names: Sequence[DeviceName]) -> None:
    """UsageError for a device that is there twice: as cpu:0 and as cpu:0:2GB, or as cpu:00."""
    shorts = [name.short for name in names]
    if twins := [short for short in shorts if shorts.count(short) > 1]:
        raise UsageError(f"device {twins[0]} is there twice, with two limits or two spellings: give it once")
