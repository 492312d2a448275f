"""The steps of attention: queries over the cache, maybe in parts of the context."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
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
from ggrun.devices.cuda.products import COLUMN_BLOCK, Quantize
from ggrun.devices.cuda.program import Counts, Launch, Work

_NO_SINKS, _NO_CAP = 0, np.float32(0.0)
_COMBINE_THREADS = 256


@dataclass(frozen=True)
class Attend:
    """A step: each token over its sequence, up to its own position; maybe to quantized columns, too.

    read       addresses: positions, sequences, tables, keys, values
    scratch    what parts of the context leave: sums, then states
    arrived    counters, all of them 0 between launches; see counter_bytes
    """

    driver: Driver
    shape: Shape
    q: int
    y: int
    read: tuple[int, ...]
    scale: float
    table_stride: int
    scratch: int
    arrived: int
    quantize: Quantize | None = None

    @property
    def quantizes(self) -> bool:
        """Whether it can: blocks of columns must be of one head."""
        return self.shape.value_dim % COLUMN_BLOCK == 0

    def with_columns(self, quantize: Quantize) -> "Attend":
        """The same, which makes the columns of this step."""
        return replace(self, quantize=quantize)

    def __call__(self, counts: Counts) -> Sequence[Work]:
        """One launch for tokens of their own; up to three for many of a sequence."""
        n, shape, driver = counts.tokens, self.shape, self.driver
        plan = _planned(shape, counts, driver)
        parts = self.scratch, self.scratch + plan.scratch(shape, n)[0]
        sizes = (np.int32(x) for x in (n, shape.heads, shape.kv_heads, self.table_stride, shape.window))
        args = self.q, self.y, *parts, *self.read, _NO_SINKS, *sizes, np.float32(self.scale), _NO_CAP
        kernel = driver.kernel(plan.file, plan.name, **plan.defines)
        if plan.combines:
            columns = self.quantize.columns if self.quantize else 0
            return [Launch(kernel, plan.grid, plan.block, (*args, columns, self.arrived), plan.shared)]
        launches: list[Work] = [Launch(kernel, plan.grid, plan.block, args, plan.shared)]
        if plan.parts > 1:
            launches.append(_combine(driver, shape, plan.parts, parts, self.y, n))
        return [*launches, *(self.quantize(counts) if self.quantize else ())]


class Attention:
    """Makes the steps of one recorder.

    inputs     where each part of the Inputs lies, see base.Inputs
    arrived    memory of counter_bytes, all zeros, and so again behind every launch: the last block that a
               counter counts leaves 0. None runs in part: an interrupt comes between launches, and where a
               kernel fails, the memory of its card is lost.
    """

    def __init__(self, driver: Driver, limits: Limits, inputs: dict[str, int], arrived: int) -> None:
        self._driver, self._limits, self._inputs, self._arrived = driver, limits, inputs, arrived

    def scratch_bytes(self, shape: Shape) -> int:
        """What parts of the context leave, sums and states, at most."""
        return _scratch_bytes(shape, self._limits, self._driver.arch, self._driver.multiprocessors)

    def attend(
        self, shape: Shape, q: int, y: int, keys: Cells, values: Cells, scale: float, scratch: int
    ) -> Attend:
        """Each token over its sequence, up to its own position. scratch: room for scratch_bytes."""
        where = (self._inputs[name] for name in ("positions", "sequences", "tables"))
        read = *where, keys.memory.address, values.memory.address
        stride = self._limits.pages
        return Attend(self._driver, shape, q, y, read, scale, stride, scratch, self._arrived)


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
