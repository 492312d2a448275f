"""Walks a plan: batches through its stages, several at a time, so that all devices work."""

from collections.abc import Iterator, Sequence
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from ggrun.arch.config import Config
from ggrun.devices.base import Device, Limits
from ggrun.devices.exchange import Exchange
from ggrun.engine.batch import Batch
from ggrun.engine.runner import CacheSpec, Runner
from ggrun.engine.stage import LoadedStage
from ggrun.engine.weights import Weights, refuse_unused
from ggrun.engine.workspace import Workspace
from ggrun.gguf import GGUF
from ggrun.plan import Plan, Stage
from ggrun.plan.cuts import check_cuts


class Pipeline:
    """A model loaded as a plan says."""

    def __init__(
        self,
        plan: Plan,
        devices: dict[str, Device],
        model: GGUF,
        config: Config,
        cache: CacheSpec,
        limits: Limits,
    ) -> None:
        check_cuts(plan, model, config)
        self._plan, self._config = plan, config
        used = dict.fromkeys(member.device for stage in plan.stages for member in stage.members)
        # One batch for each device that works, and one on its way.
        self._window = len(used) + 1
        receiving = {member.device for stage in plan.stages[1:] for member in stage.members}
        self._spaces = {
            name: Workspace(
                Weights(model, devices[name]), config, limits, self._window if name in receiving else 0
            )
            for name in used
        }
        self._exchanges: dict[tuple[str, ...], Exchange] = {}
        self._stages = [self._load(stage, cache) for stage in plan.stages]
        refuse_unused(model, set().union(*(space.weights.used for space in self._spaces.values())))
        self._broken = False

    def _load(self, stage: Stage, cache: CacheSpec) -> LoadedStage:
        first, last = stage is self._plan.stages[0], stage is self._plan.stages[-1]
        runners = [
            Runner(self._spaces[m.device], self._config, stage, m, cache, first=first, last=last)
            for m in stage.members
        ]
        sums = len(runners) > 1 and stage.halves[0] < stage.halves[1]
        return LoadedStage(runners, self._exchange(stage) if sums else None)

    def _exchange(self, stage: Stage) -> Exchange:
        """Stages of the same devices share one: it has memory."""
        names = tuple(member.device for member in stage.members)
        if names not in self._exchanges:
            spaces = [self._spaces[name] for name in names]
            members = [(space.device, space.ops) for space in spaces]
            self._exchanges[names] = Exchange(members, self._config.width)
        return self._exchanges[names]

    def run(self, batches: Sequence[Batch]) -> NDArray[np.float32]:
        """The logits that the batches ask for, one behind the other: float32 [outputs of all, vocab].

        Batches go through each stage in the order that they have here. The first error is raised when all
        devices are at rest.
        """
        if self._broken:  # a second Ctrl+C came while the devices came to rest
            self._give_up()
        self._broken = True
        try:
            ends = list(accumulate((batch.wanted for batch in batches), initial=0))
            logits = np.empty((ends[-1], self._config.vocab), np.float32)
            for stage, i in schedule(len(self._stages), len(batches), self._window):
                self._enqueue(stage, batches[i], i % self._window, logits[ends[i] : ends[i + 1]])
            for space in self._spaces.values():
                space.device.stream.synchronize()
        except BaseException:
            self._give_up()
            raise
        self._broken = False
        return logits

    def _enqueue(self, index: int, batch: Batch, slot: int, logits: NDArray[np.float32]) -> None:
        """One batch through one stage."""
        stage = self._stages[index]
        if index > 0:
            stage.receive(batch, slot)
        stage.run(batch)
        if index + 1 < len(self._stages):
            stage.send(batch, self._stages[index + 1], slot)
        else:
            stage.download(batch, logits)

    def _give_up(self) -> None:
        for space in self._spaces.values():
            space.device.stream.abandon()
        for space in self._spaces.values():
            space.forget()
        for exchange in self._exchanges.values():
            exchange.forget()
        self._broken = False


def schedule(stages: int, batches: int, window: int) -> Iterator[tuple[int, int]]:
    """Pairs of a stage and a batch, in an order in which devices find work: as waves go.

    At most `window` batches are under way. Each batch goes through the stages in order, and each stage sees
    the batches in order.
    """
    begins = [batch // window * max(stages, window) + batch % window for batch in range(batches)]
    first = 0
    for time in range(begins[-1] + stages if batches else 0):
        while time - begins[first] >= stages:
            first += 1
        for batch in range(first, min(first + window, batches)):
            if time >= begins[batch]:
                yield time - begins[batch], batch
