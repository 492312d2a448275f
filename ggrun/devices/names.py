"""Names of devices: cpu, cpu:1, cpu:1:2GB, emulated:0:512MB, cuda:0; logical ones of one card: cuda:0.1:24GB.

Those of other machines have a host before them: host:port/cuda:0.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ggrun.errors import UsageError

KINDS = ("cpu", "emulated", "cuda")
_NAME = re.compile(
    r"(?P<kind>[a-z]+)(:(?P<index>\d{1,3})(\.(?P<part>\d{1,3}))?)?"
    r"(:(?P<size>\d+(\.\d+)?)(?P<unit>[KMGT]?)i?B)?"
)
_UNITS = {unit: 1 << (10 * i) for i, unit in enumerate(("", "K", "M", "G", "T"))}


@dataclass(frozen=True)
class DeviceName:
    """A kind of device, which one of them, and how much of its memory may be taken.

    part    which of the logical devices of a card, where it has several
    """

    kind: str
    index: int | None
    limit: int | None
    part: int | None = None

    @property
    def short(self) -> str:
        """The name without the limit, which no other device has."""
        part = "" if self.part is None else f".{self.part}"
        return self.kind if self.index is None else f"{self.kind}:{self.index}{part}"

    @classmethod
    def parse(cls, text: str) -> "DeviceName":
        """UsageError for a kind that there is not, or a limit that is none. A GB is 2^30 bytes."""
        found = _NAME.fullmatch(text)
        if found is None or found["kind"] not in KINDS:
            raise UsageError(
                f"unknown device {text!r:.60}: there are {', '.join(KINDS)}, as in cpu, cuda:0, cpu:1:2GB"
            )
        index, part, size = found["index"], found["part"], found["size"]
        if found["kind"] == "cuda" and index is None:
            raise UsageError(f"device {text!r:.60}: say which card, as cuda:0")
        if part is not None and found["kind"] != "cuda":
            raise UsageError(f"device {text!r:.60}: only cards have parts, as cuda:0.1")
        limit = None if size is None else int(float(size) * _UNITS[found["unit"]])
        return cls(found["kind"], _number(index), limit, _number(part))


def all_cards(names: Iterable[str]) -> bool:
    """Whether all of these are cards."""
    return all(name.startswith("cuda") for name in names)


def refuse_twins(names: Sequence[DeviceName]) -> None:
    """UsageError for a device that is there twice: as cpu:0 and as cpu:0:2GB, or as cpu:00."""
    shorts = [name.short for name in names]
    if twins := [short for short in shorts if shorts.count(short) > 1]:
        raise UsageError(f"device {twins[0]} is there twice, with two limits or two spellings: give it once")


def _number(digits: str | None) -> int | None:
    return None if digits is None else int(digits)
