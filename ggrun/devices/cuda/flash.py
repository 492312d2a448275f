"""The steps of attention: queries over the cache, maybe in parts of the context."""

from functools import cache

import numpy as np

from ggrun.devices.base import Cells, Limits
from ggrun.devices.cuda.attention import (
    PAGE,
    AttentionLaunch,
    Shape,
    bucket,
    plan_attention,
)
from ggrun.devices.cuda.driver import Driver
from ggrun.devices.cuda.program import Counts, Launch, Step

_NO_SINKS, _NO_CAP = 0, np.float32(0.0)
_COMBINE_THREADS = 256


class Attention:
    """Steps for one card. inputs: where each part of the Inputs lies, see base.Inputs."""

    def __init__(self, driver: Driver, limits: Limits, inputs: dict[str, int]) -> None:
        self._driver, self._limits, self._inputs = driver, limits, inputs

    def scratch_bytes(self, shape: Shape) -> int:
        """What parts of the context leave, sums and states, at most."""
        return _scratch_bytes(shape, self._limits, self._driver.arch, self._driver.multiprocessors)

    def attend(
        self, shape: Shape, q: int, y: int, keys: Cells, values: Cells, scale: float, scratch: int
    ) -> Step:
        """Each token over its sequence, up to its own position."""
        inputs, driver = self._inputs, self._driver
        where = inputs["positions"], inputs["sequences"], inputs["tables"]
        read = *where, keys.memory.address, values.memory.address, _NO_SINKS
        heads, stride = (np.int32(shape.heads), np.int32(shape.kv_heads)), np.int32(self._limits.pages)
        numbers = stride, np.int32(shape.window), np.float32(scale), _NO_CAP

        def step(counts: Counts) -> list[Launch]:
            n, plan = counts.tokens, _planned(shape, counts, driver)
            parts = scratch, scratch + plan.scratch(shape, n)[0]  # sums, states
            kernel = driver.kernel(plan.file, plan.name, **plan.defines)
            args = q, y, *parts, *read, np.int32(n), *heads, *numbers
            launches = [Launch(kernel, plan.grid, plan.block, args, plan.shared)]
            return (
                launches if plan.parts == 1 else [*launches, _combine(driver, shape, plan.parts, parts, y, n)]
            )

        return step


def _combine(driver: Driver, shape: Shape, parts: int, scratch: tuple[int, int], y: int, n: int) -> Launch:
    rows = n * shape.heads
    sizes = (np.int32(size) for size in (rows, shape.heads, parts, shape.value_dim))
    kernel = driver.kernel("attention_combine.cu", "attention_combine")
    return Launch(kernel, (max(1, rows),), (_COMBINE_THREADS,), (*scratch, _NO_SINKS, y, *sizes))


def _planned(shape: Shape, counts: Counts, driver: Driver) -> AttentionLaunch:
    return plan_attention(
        shape, counts.tokens, counts.sequences, counts.context, driver.arch, driver.multiprocessors
    )


@cache
def _scratch_bytes(shape: Shape, limits: Limits, arch: int, multiprocessors: int) -> int:
    """The most over all numbers of tokens and contexts."""
    contexts = {bucket(1 << i) for i in range(bucket(limits.pages * PAGE).bit_length())}
    return max(
        sum(plan_attention(shape, n, sequences, context, arch, multiprocessors).scratch(shape, n))
        for n in range(1, limits.tokens + 1)
        for context in contexts
        for sequences in {1, min(n, limits.sequences)}
    )
