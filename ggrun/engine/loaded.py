"""Stages of a plan, loaded on the devices of this machine."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import cycle

from ggrun.arch.config import Config
from ggrun.devices.all_reduce import find_faster_sums, open_all_reduce
from ggrun.devices.base import Device, Limits
from ggrun.devices.exchange import AllReduce
from ggrun.devices.together import PIECE_BY_PIECE, Together, open_together
from ggrun.engine.meter import Meter, MeteredStage, MeteredSums
from ggrun.engine.offloaded import OffloadedStage, Turns, turns_of
from ggrun.engine.runner import CacheSpec, Runner
from ggrun.engine.stage import Hop, LoadedStage
from ggrun.engine.weights import Model, Weights
from ggrun.engine.workspace import Workspace
from ggrun.errors import GgrunError
from ggrun.plan import Plan, Stage
from ggrun.plan.offload import NONE, Offloads

Sums = tuple[str, str]
"""How devices that share rows sum what they have: the way and the wire of open_all_reduce."""
SUMS: Sums = ("auto", "f32")


class Loaded:
    """Some stages of a plan: a Workspace for each of their devices, a Runner for each of their members.

    stages    by their numbers in the plan
    slots     how many batches may be on their way to each device
    meter     measures times, where they are asked for
    sums      how devices that share rows sum
    offloads  stages of the CPU that cards compute for large batches
    """

    def __init__(
        self,
        plan: Plan,
        which: Sequence[int],
        devices: dict[str, Device],
        model: Model,
        config: Config,
        cache: CacheSpec,
        limits: Limits,
        slots: int,
        meter: Meter | None = None,
        sums: Sums = SUMS,
        offloads: Offloads = NONE,
    ) -> None:
        self._plan, self._config, self._cache, self._meter, self._how = plan, config, cache, meter, sums
        for i in which:
            if _shares_rows(stage := plan.stages[i]):
                find_faster_sums([devices[member.device] for member in stage.members], *sums)
        used = dict.fromkeys(member.device for i in which for member in plan.stages[i].members)
        receiving = {member.device for i in which if i for member in plan.stages[i].members}
        receiving |= {offload.card for offload in offloads.values()}
        self._spaces = {
            name: Workspace(Weights(model, devices[name]), config, limits, slots if name in receiving else 0)
            for name in used
        }
        self._sums: dict[tuple[str, ...], AllReduce] = {}
        self._together: list[Together] = []
        self.stages = {i: self._load(plan.stages[i]) for i in which}
        self._turns: list[Turns] = []
        for card in dict.fromkeys(offload.card for offload in offloads.values()):
            with suppress(GgrunError):  # memory is short after all: the CPU does it, as before
                self._offload(card, {i: offload for i, offload in offloads.items() if offload.card == card})

    @property
    def tensors(self) -> set[str]:
        """The names of those that were taken."""
        return set().union(*(space.weights.used for space in self._spaces.values()))

    @property
    def devices(self) -> list[Device]:
        """All that are used."""
        return [space.device for space in self._spaces.values()]

    def synchronize(self) -> None:
        """Wait until all that was enqueued is done; raises the first error."""
        for space in self._spaces.values():
            space.device.stream.synchronize()

    def abandon(self) -> None:
        """Bring the devices to rest after an error, and begin anew."""
        for space in self._spaces.values():
            space.device.stream.abandon()
        for space in self._spaces.values():
            space.forget()
        for sums in self._sums.values():
            sums.forget()
        for together in self._together:
            together.forget()
        for turns in self._turns:
            turns.forget()

    def _load(self, stage: Stage) -> Hop:
        first, last = stage is self._plan.stages[0], stage is self._plan.stages[-1]
        runners = [
            Runner(self._spaces[m.device], self._config, stage, m, self._cache, first=first, last=last)
            for m in stage.members
        ]
        return self._hop(runners, self._all_reduce(stage) if _shares_rows(stage) else None)

    def _offload(self, card: str, offloads: Offloads) -> None:
        """Let a card compute stages of the CPU; GgrunError when it has no room for that."""
        space, made = self._spaces[card], dict[int, Hop]()
        turns = turns_of(space.device, max(offload.nbytes for offload in offloads.values()))
        for (i, offload), turn in zip(offloads.items(), cycle(turns)):
            weights = space.weights.by_turns(turn.slot)
            stage = self._plan.stages[i]
            member = replace(stage.members[0], device=card)
            runner = Runner(
                space, self._config, stage, member, self._cache, first=False, last=False, weights=weights
            )
            made[i] = OffloadedStage(self.stages[i], self._hop([runner], None), offload.least, turn, weights)
        self.stages |= made
        self._turns += turns

    def _hop(self, runners: Sequence[Runner], sums: AllReduce | None) -> Hop:
        together = PIECE_BY_PIECE
        # With cells in the host's memory a graph takes as long as the bus: one that hangs looks alike.
        if sums and not self._cache.on_host:
            together = open_together([(runner.space.device, runner.space.ops) for runner in runners], sums)
            self._together.append(together)
        loaded = LoadedStage(runners, sums, together)
        return MeteredStage(loaded, self._meter) if self._meter else loaded

    def _all_reduce(self, stage: Stage) -> AllReduce:
        """Stages of the same devices share one: it has memory."""
        names = tuple(member.device for member in stage.members)
        if names not in self._sums:
            spaces = [self._spaces[name] for name in names]
            members = [(space.device, space.ops) for space in spaces]
            sums = open_all_reduce(members, self._config.width, *self._how)
            if self._meter:
                sums = MeteredSums(sums, [space.device for space in spaces], self._meter)
            self._sums[names] = sums
        return self._sums[names]


def _shares_rows(stage: Stage) -> bool:
    """Whether members have to sum what they have."""
    return len(stage.members) > 1 and stage.halves[0] < stage.halves[1]
