"""Where every layer runs: a Plan is data, made before anything is loaded.

A Plan is a list of Stages; a Stage is a run of half layers and the Members that share it; a Member is a
device and the ranges of heads, key-value heads and feed-forward columns that it owns.
"""

import json
from dataclasses import asdict, dataclass
from typing import Any

from ggrun.arch.config import Config
from ggrun.errors import UsageError

Range = tuple[int, int]
"""[begin, end)"""


@dataclass(frozen=True)
class Member:
    """One device and its share of each half layer of a stage."""

    device: str
    heads: Range
    kv_heads: Range
    ff: Range


@dataclass(frozen=True)
class Stage:
    """A run of half layers: 2 i is the attention of layer i, 2 i + 1 its feed-forward. One member: no
    sharing."""

    halves: Range
    members: tuple[Member, ...]


@dataclass(frozen=True)
class Plan:
    """All stages, in the order in which activations pass them. The first has the embedding, the last the
    output."""

    stages: tuple[Stage, ...]

    def to_json(self) -> str:
        """The plan as text."""
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """A plan from text; UsageError when it is none."""
        try:
            stages = [_stage(s) for s in json.loads(text)["stages"]]
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UsageError(f"not a plan: {type(error).__name__}: {error}") from None
        return cls(tuple(stages))

    def check(self, config: Config) -> None:
        """UsageError unless the stages cover the model's half layers once, in order."""
        at = 0
        for stage in self.stages:
            if stage.halves[0] != at or stage.halves[1] <= at:
                raise UsageError(
                    f"the plan's stages must follow each other: {stage.halves} after half layer {at}"
                )
            at = stage.halves[1]
        if at != 2 * config.layers:
            raise UsageError(f"the plan ends at half layer {at}, the model has {2 * config.layers}")


def _range(value: Any) -> Range:
    begin, end = value
    if not (isinstance(begin, int) and isinstance(end, int) and 0 <= begin <= end):
        raise ValueError(f"{value} is not a range")
    return begin, end


def _stage(data: dict[str, Any]) -> Stage:
    members = tuple(
        Member(str(m["device"]), _range(m["heads"]), _range(m["kv_heads"]), _range(m["ff"]))
        for m in data["members"]
    )
    if not members:
        raise ValueError("a stage without members")
    return Stage(_range(data["halves"]), members)


def whole(config: Config, device: str) -> Member:
    """A member that owns everything of its stage."""
    return Member(device, (0, config.heads), (0, config.kv_heads), (0, config.ff))


def single(config: Config, device: str) -> Plan:
    """Mode "none": everything on one device."""
    return Plan((Stage((0, 2 * config.layers), (whole(config, device),)),))
