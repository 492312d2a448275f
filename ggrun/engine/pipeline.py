"""Walks a plan: the stages in order, a batch through all of them."""

import numpy as np
from numpy.typing import NDArray

from ggrun.arch.config import Config
from ggrun.devices.base import Device, Limits
from ggrun.engine.batch import Batch
from ggrun.engine.runner import CacheSpec, Runner
from ggrun.engine.weights import refuse_unused
from ggrun.errors import UsageError
from ggrun.gguf import GGUF
from ggrun.plan import Plan


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
        for stage in plan.stages:
            if len(stage.members) != 1:
                raise UsageError(
                    "a stage of several members (row split) is not built yet: give every stage one"
                )
        self._runners = [
            Runner(devices[member.device], model, config, stage, member, cache, limits)
            for stage in plan.stages
            for member in stage.members
        ]
        refuse_unused(model, set().union(*(runner.used_tensors for runner in self._runners)))

    def run(self, batch: Batch) -> NDArray[np.float32]:
        """The logits that the batch asks for: float32 [outputs, vocab]."""
        x = None
        for runner in self._runners:
            x = runner.run(batch, x)
        assert x is not None
        return x
