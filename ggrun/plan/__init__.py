"""Where every layer runs: a Plan is data, made before anything is loaded.

A Plan is a list of Stages; a Stage is a run of half layers and the Members that share it; a Member is a
device and the ranges of heads, key-value heads, feed-forward columns and output rows that it owns.
"""

import json
from collections import Counter
from dataclasses import asdict, dataclass, fields
from typing import Any

from ggrun.arch.config import Config
from ggrun.errors import UsageError

Range = tuple[int, int]
"""[begin, end)"""
_MOST_MEMBERS = 256
"""Of one stage: more than any machine has devices. A plan may be a stranger's."""


@dataclass(frozen=True)
class Member:
    """One device and its share of each half layer of a stage. A share may be empty: others have it all."""

    device: str
    heads: Range
    kv_heads: Range
    ff: Range
    vocab: Range = (0, 0)
    """Rows of the output matrix; those of the last stage count."""


@dataclass(frozen=True)
class Stage:
    """Half layers (2 i: the attention of layer i, 2 i + 1: its feed-forward) and who shares them.

    The first stage may have none, and then only embeds; the last may have none but the output.
    """

    halves: Range
    members: tuple[Member, ...]


@dataclass(frozen=True)
class Plan:
    """All stages, as activations pass them. The first has the embedding, the last the output."""

    stages: tuple[Stage, ...]
    kv_on_host: bool = False
    """Keys and values stay in the host's memory, whatever device computes with them (-nkvo)."""

    def to_json(self) -> str:
        """The plan as text."""
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """A plan from text; UsageError when it is none."""
        try:
            data = json.loads(text)
            stages = [_stage(s) for s in data["stages"]]
            _refuse_unknown(data, cls)
            kv_on_host = data.get("kv_on_host", False)
            if type(kv_on_host) is not bool:
                raise ValueError(f"kv_on_host is {kv_on_host!r:.60}")
        except KeyError as error:
            raise UsageError(f"not a plan: {error.args[0]!r:.40} is missing") from None
        except json.JSONDecodeError as error:
            raise UsageError(f"not a plan: no JSON: {error}") from None
        except (ValueError, OverflowError, RecursionError) as error:
            raise UsageError(f"not a plan: {error!s:.120}") from None
        except (TypeError, AttributeError):
            raise UsageError(
                "not a plan: it must be stages of members, as ggrun plan --json writes"
            ) from None
        return cls(tuple(stages), kv_on_host)

    def _check_kinds(self) -> None:
        """UsageError for what the types say, to those who write a plan in Python."""
        stages: Any = self.stages
        kinds = isinstance(stages, tuple | list) and all(isinstance(stage, Stage) for stage in stages)
        members = [m for stage in stages for m in stage.members] if kinds else []
        if not kinds or not all(isinstance(m, Member) and isinstance(m.device, str) for m in members):
            raise UsageError("the plan must be Stages of Members, whose devices are names")
        if not isinstance(self.kv_on_host, bool):
            raise UsageError(f"the plan's kv_on_host is {self.kv_on_host!r:.40}: it must be True or False")

    def check(self, config: Config) -> None:
        """UsageError unless stages cover the half layers, and members all of each, once and in order.

        Ranges become sizes of buffers and addresses: nothing may use a plan before this.
        """
        self._check_kinds()
        inner = self.stages[1:-1]
        _cover("half layers", [stage.halves for stage in self.stages], 2 * config.layers)
        if empty := [stage.halves for stage in inner if stage.halves[0] == stage.halves[1]]:
            raise UsageError(f"the plan's half layers {list(empty[0])} are none: only an end may be empty")
        if self.stages:
            _cover("output rows", [m.vocab for m in self.stages[-1].members], config.vocab)
        group = config.heads // config.kv_heads
        for stage in self.stages:
            if len(stage.members) > _MOST_MEMBERS:
                raise UsageError(
                    f"the plan has {len(stage.members)} members in half layers {list(stage.halves)}: "
                    f"{_MOST_MEMBERS} at most"
                )
            _cover("key-value heads", [m.kv_heads for m in stage.members], config.kv_heads)
            _cover("heads", [m.heads for m in stage.members], config.heads)
            _cover("feed-forward columns", [m.ff for m in stage.members], config.ff)
            for m in stage.members:
                if m.heads != (m.kv_heads[0] * group, m.kv_heads[1] * group):
                    raise UsageError(
                        f"the plan gives {m.device} heads {list(m.heads)} with key-value heads "
                        f"{list(m.kv_heads)}: each of these serves {group} heads"
                    )
            names = Counter(member.device for member in stage.members)
            if twice := [name for name, count in names.items() if count > 1]:
                raise UsageError(f"the plan has {twice[0]!r:.40} twice in half layers {list(stage.halves)}")
            if len(hosts := sorted({host_of(name) or "this machine" for name in names})) > 1:
                raise UsageError(
                    f"the plan shares half layers {list(stage.halves)} between {' and '.join(hosts)!s:.80}: "
                    "members of a stage must be on one machine"
                )


def _cover(what: str, ranges: list[Range], size: int) -> None:
    """UsageError unless the ranges follow each other from 0 to size."""
    at = 0
    for given in ranges:
        try:
            begin, end = _range(given)
        except (ValueError, TypeError):
            raise UsageError(f"the plan's {what} {given!r:.60} are no range") from None
        if begin != at:
            raise UsageError(f"the plan's {what} {[begin, end]} cannot follow {at} of {size}")
        at = end
    if at != size:
        raise UsageError(f"the plan's {what} end at {at}, the model has {size}")


def _range(value: Any) -> Range:
    begin, end = value
    if not (type(begin) is int and type(end) is int and 0 <= begin <= end):
        raise ValueError(f"{value!r:.60} is not a range")
    return begin, end


def _refuse_unknown(data: dict[str, Any], kind: type[Plan | Stage | Member]) -> None:
    """ValueError for a key that says nothing: it may be a wish that would not be kept."""
    known = [field.name for field in fields(kind)]
    if unknown := [key for key in data if key not in known]:
        raise ValueError(f"a {kind.__name__.lower()} has {', '.join(known)}, and no {unknown[0]!r:.40}")


def _stage(data: dict[str, Any]) -> Stage:
    _refuse_unknown(data, Stage)
    for member in data["members"]:
        _refuse_unknown(member, Member)
    members = tuple(
        Member(str(m["device"]), *(_range(m[share]) for share in ("heads", "kv_heads", "ff", "vocab")))
        for m in data["members"]
    )
    if not members:
        raise ValueError("a stage without members")
    return Stage(_range(data["halves"]), members)


def host_of(device: str) -> str:
    """The machine that a device's name begins with (host:port/cuda:0); "" for this one."""
    return device.rpartition("/")[0]


def whole(config: Config, device: str) -> Member:
    """A member that owns everything of its stage."""
    return Member(device, (0, config.heads), (0, config.kv_heads), (0, config.ff), (0, config.vocab))


def single(config: Config, device: str) -> Plan:
    """Mode "none": everything on one device."""
    return Plan((Stage((0, 2 * config.layers), (whole(config, device),)),))
