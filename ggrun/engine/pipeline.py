"""Walks a plan: batches through its stages, several at a time, so that all devices work."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ggrun.arch.config import Config
from ggrun.devices.base import Device, Limits
from ggrun.engine.batch import Batch
from ggrun.engine.hosts import Host, hops
from ggrun.engine.loaded import SUMS, Loaded, Sums
from ggrun.engine.meter import Meter
from ggrun.engine.outputs import Outputs, Scores
from ggrun.engine.runner import CacheSpec
from ggrun.engine.stage import Hop
from ggrun.engine.weights import refuse_unused
from ggrun.gguf import GGUF
from ggrun.plan import Plan
from ggrun.plan.cuts import check_cuts
from ggrun.plan.offload import NONE, Offloads


class Pipeline:
    """A model loaded as a plan says.

    hosts    other machines, by the names that the plan's devices begin with
    meter    measures what the devices here do, if there is one
    sums, offloads
             how they sum, and what cards compute for the CPU, see Loaded
    """

    def __init__(
        self,
        plan: Plan,
        devices: dict[str, Device],
        model: GGUF,
        config: Config,
        cache: CacheSpec,
        limits: Limits,
        hosts: Mapping[str, Host] | None = None,
        meter: Meter | None = None,
        sums: Sums = SUMS,
        offloads: Offloads = NONE,
    ) -> None:
        check_cuts(plan, model, config)
        self._config, self._meter, ways = config, meter, hops(plan)
        used = dict.fromkeys(member.device for stage in plan.stages for member in stage.members)
        # One batch for each device that works, and one on its way.
        self._window = slots = len(used) + 1
        self._hosts = {host: (hosts or {})[host] for host, _ in ways if host}
        # Others load while we do.
        elsewhere = {
            name: iter(host.begin(plan, [r for h, r in ways if h == name], model, cache, limits, slots))
            for name, host in self._hosts.items()
        }
        here = [run.start for host, run in ways if not host]
        self._here = Loaded(plan, here, devices, model, config, cache, limits, slots, meter, sums, offloads)
        self._stages: list[Hop] = [
            next(elsewhere[host]) if host else self._here.stages[run.start] for host, run in ways
        ]
        taken = self._here.tensors.union(*(host.finish() for host in self._hosts.values()))
        refuse_unused(model, taken)
        self._broken = False

    def run(self, batches: Sequence[Batch], logits: NDArray[np.float32] | None = None) -> list[Scores]:
        """What each batch wants of its outputs.

        logits    room for those of all batches, one behind the other: float32 [outputs of all, vocab]; None:
                  each has its own

        Batches go through each stage in the order that they have here. The first error is raised when all
        devices are at rest.
        """
        if self._broken:  # a second Ctrl+C came while the devices came to rest
            self._give_up()
        self._broken = True
        if self._meter:
            self._meter.begin(self._here.devices)
        try:
            rooms, outputs = self._rooms(batches, logits), list[Outputs]()
            for stage, batch in schedule(len(self._stages), len(batches), self._window):
                self._enqueue(stage, batches[batch], batch % self._window)
                if stage + 1 == len(self._stages):  # room is made while devices work
                    outputs.append(next(rooms))
                    self._stages[stage].download(batches[batch], outputs[-1])
            if self._meter:
                self._meter.end()
            self._here.synchronize()
            for host in self._hosts.values():
                host.synchronize()
            if self._meter:
                self._meter.collect()
        except BaseException:
            self._give_up()
            raise
        self._broken = False
        return [output.scores() for output in outputs]

    def _rooms(self, batches: Sequence[Batch], logits: NDArray[np.float32] | None) -> Iterator[Outputs]:
        """For the outputs of each batch, in their order."""
        begin = 0
        for batch in batches:
            room = None if logits is None else logits[begin : begin + batch.wanted]
            yield (outputs := Outputs(batch, self._config.vocab, room))
            begin += outputs.rows

    def interrupt(self) -> None:
        """Make `run` end with Interrupted on other machines, as devices do here; from any thread."""
        for host in self._hosts.values():
            host.interrupt()

    def resume(self) -> None:
        """Let `run` work again."""
        for host in self._hosts.values():
            host.resume()

    def _enqueue(self, index: int, batch: Batch, slot: int) -> None:
        """One batch through one stage."""
        stage = self._stages[index]
        if index > 0:
            stage.receive(batch, slot)
        stage.run(batch)
        if index + 1 < len(self._stages):
            stage.send(batch, self._stages[index + 1], slot)

    def _give_up(self) -> None:
        for host in self._hosts.values():
            host.abandon()
        self._here.abandon()
        if self._meter:
            self._meter.forget()
        self._broken = False


def schedule(stages: int, batches: int, window: int) -> Iterator[tuple[int, int]]:
    """Pairs of a stage and a batch, in an order in which devices find work: as waves go.

    At most `window` batches are under way. Each batch goes through the stages in order, and each stage sees
    the batches in order.
    """
    begins = [batch // window * max(stages, window) + batch % window for batch in range(batches)]
    first = 0
    for step in range(begins[-1] + stages if batches else 0):
        while step - begins[first] >= stages:
            first += 1
        for batch in range(first, min(first + window, batches)):
            if step >= begins[batch]:
                yield step - begins[batch], batch
