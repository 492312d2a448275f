"""The steps of attention: keys and values into the cache, and queries over it, maybe in parts of the context."""

from functools import cache

import numpy as np

from ggrun.devices.base import Cells, Limits
from ggrun.devices.cuda.attention import (
    PAGE,
    AttentionLaunch,
    Shape,
    bucket,
    plan_attention,
    store_shape,
)
from ggrun.devices.cuda.driver import Driver
from ggrun.devices.cuda.program import Counts, Launch, Step


class Attention:
    """Steps for one card. inputs: where each part of the Inputs lies, see base.Inputs."""

    def __init__(self, driver: Driver, limits: Limits, inputs: dict[str, int]) -> None:
        self._driver, self._limits, self._inputs = driver, limits, inputs

    def store(self, x: int, cells: Cells) -> Step:
        """Rows of keys or values to the input slots."""
        kernel = self._driver.kernel("store.cu", "store", KIND=cells.kind.upper())
        slots, heads, dim = self._inputs["slots"], cells.heads, cells.dim

        def step(counts: Counts) -> list[Launch]:
            n = counts.tokens
            args = x, slots, cells.memory.address, np.int32(n), np.int32(heads), np.int32(dim)
            return [Launch(kernel, *store_shape(n, heads), args)]

        return step

    def scratch_bytes(self, shape: Shape) -> tuple[int, int]:
        """The most bytes of sums and of states that parts of the context need."""
        return _scratch_bytes(shape, self._limits, self._driver.arch, self._driver.multiprocessors)

    def attend(
        self, shape: Shape, q: int, y: int, keys: Cells, values: Cells, scale: float, scratch: tuple[int, int]
    ) -> Step:
        """Each token over its sequence, up to its own position. scratch: sums and states."""
        inputs, driver = self._inputs, self._driver
        tables = inputs["positions"], inputs["sequences"], inputs["tables"]
        stride, numbers = np.int32(self._limits.pages), (np.float32(scale), np.float32(0.0))
        cells = keys.memory.address, values.memory.address

        def step(counts: Counts) -> list[Launch]:
            n = counts.tokens
            plan = _planned(shape, counts, driver)
            kernel = driver.kernel(plan.file, plan.name, **plan.defines)
            sizes = (
                np.int32(n),
                np.int32(shape.heads),
                np.int32(shape.kv_heads),
                stride,
                np.int32(shape.window),
            )
            launch = Launch(
                kernel,
                plan.grid,
                plan.block,
                (q, y, *scratch, *tables, *cells, 0, *sizes, *numbers),
                plan.shared,
            )
            return [launch] if plan.parts == 1 else [launch, _combine(driver, shape, plan, scratch, y, n)]

        return step


def _combine(
    driver: Driver, shape: Shape, plan: AttentionLaunch, scratch: tuple[int, int], y: int, n: int
) -> Launch:
    rows = n * shape.heads
    sizes = (np.int32(size) for size in (rows, shape.heads, plan.parts, shape.value_dim))
    kernel = driver.kernel("attention_combine.cu", "attention_combine")
    return Launch(kernel, (max(1, rows),), (256,), (*scratch, 0, y, *sizes))


def _planned(shape: Shape, counts: Counts, driver: Driver) -> AttentionLaunch:
    return plan_attention(
        shape, counts.tokens, counts.sequences, counts.context, driver.arch, driver.multiprocessors
    )


@cache
def _scratch_bytes(shape: Shape, limits: Limits, arch: int, multiprocessors: int) -> tuple[int, int]:
    """The most over all numbers of tokens and contexts."""
    contexts = {bucket(1 << i) for i in range(bucket(limits.pages * PAGE).bit_length())}
    most = [0, 0]
    for n in range(1, limits.tokens + 1):
        for context in contexts:
            for sequences in {1, min(n, limits.sequences)}:
                plan = plan_attention(shape, n, sequences, context, arch, multiprocessors)
                most = [max(pair) for pair in zip(most, plan.scratch(shape, n), strict=True)]
    return most[0], most[1]
