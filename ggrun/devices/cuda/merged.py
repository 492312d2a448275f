"""Products of the same rows, one recorded behind the other, in one launch: queries, keys and values."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ggrun.devices.cuda import matvec
from ggrun.devices.cuda.products import Linear
from ggrun.devices.cuda.program import FEW, Counts, Launch, Step, Work

_MOST = 3
"""Matrices that matvec_merged takes."""


@dataclass(frozen=True)
class Merged:
    """A step: two or three products of the same rows with weights of one format."""

    parts: tuple[Linear, ...]

    def __call__(self, counts: Counts) -> Sequence[Work]:
        """The launches: one for a few tokens, which so finds enough to do for all of a card."""
        n = counts.rows(self.parts[0].over)
        if n <= FEW:
            return [self._few(n)]
        return [work for part in self.parts for work in part(counts)]

    def _few(self, n: int) -> Launch:
        first, driver = self.parts[0], self.parts[0].driver
        rows, k = [part.w.rows for part in self.parts], first.w.columns
        kernel = driver.kernel("matvec.cu", "matvec_merged", **matvec.matvec_defines(first.w.format, n))
        shape = matvec.merged_shape(first.w.format, rows, k, n, driver.multiprocessors)
        missing = [0] * (_MOST - len(self.parts))
        args = (
            *(part.w.address for part in self.parts), *missing, first.x,
            *(part.y for part in self.parts), *missing,
            *(np.int32(count) for count in (*rows, *missing)), np.int32(k), np.int32(n),
            *(np.float32(part.scale) for part in self.parts), *map(np.float32, missing),
            *(part.bias for part in self.parts), *missing,
        )  # fmt: skip
        return Launch(kernel, *shape, args)


def merged(steps: Sequence[Step]) -> list[Step]:
    """The same steps, with neighbouring products merged where they can be."""
    found: list[Step] = []
    for step in steps:
        before = found[-1] if found else None
        parts = before.parts if isinstance(before, Merged) else (before,)
        if isinstance(step, Linear) and all(_match(part, step) for part in parts) and len(parts) < _MOST:
            found[-1] = Merged((*parts, step))
        else:
            found.append(step)
    return found


def _match(one: Any, other: Linear) -> bool:
    """Whether both can be in a launch: neither writes what the other reads or writes."""
    if not isinstance(one, Linear) or one.residual or other.residual or one.y == other.y:
        return False
    alike = one.w.format == other.w.format and one.w.columns == other.w.columns
    return alike and (one.over, one.x) == (other.over, other.x)
