"""The best logits of each output: what sample.cu is given, launch after launch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ggrun.devices.best import MOST_K
from ggrun.devices.cuda import grids
from ggrun.devices.cuda.driver import Driver
from ggrun.devices.cuda.program import Counts, Launch

WORDS = 2 * MOST_K
"""Of what is found in a row, at most."""
_KEY = 8
"""Bytes of a candidate: sample.cu's Key."""


def scratch_bytes(width: int) -> int:
    """What the candidates of a row of so many logits take, between launches."""
    passes = grids.top_k(1, width, MOST_K)[1:]  # each is given what the one before it has left
    return _KEY * max(sum(each.given for each in passes), grids.slices(1, width).grid[0])


@dataclass(frozen=True)
class BestLogits:
    """A step: the k best of each output, in runs that want them.

    logits   [outputs, stride], of ids from `first` on
    best     where ids and logits go, [2, outputs, k] words
    scratch  room for scratch_bytes of each output
    """

    driver: Driver
    logits: int
    stride: int
    first: int
    best: int
    scratch: int

    def __call__(self, counts: Counts) -> Sequence[Launch]:
        """Launches that leave the candidates of slices, and then of slices of these, until there is one."""
        if counts.top is None or not counts.outputs:
            return []
        n, k = counts.outputs, counts.top.k
        width = counts.top.among(self.first, self.first + self.stride)
        out = self.best, self.best + 4 * n * k
        return self._best(n, width, out) if k == 1 else self._k_best(n, width, k, out)

    def _best(self, n: int, width: int, out: tuple[int, int]) -> list[Launch]:
        slices = grids.slices(n, width)
        sizes = np.int32(n), np.int32(width), np.int32(self.stride)
        of_slices = self.scratch, *out, np.int32(n), np.int32(slices.grid[0])
        return [
            self._launch("argmax", slices, self.logits, self.scratch, *sizes),
            self._launch("argmax_of_slices", grids.of_slices(n, width), *of_slices),
        ]

    def _k_best(self, n: int, width: int, k: int, out: tuple[int, int]) -> list[Launch]:
        found, room, launches = self.logits, self.scratch, []
        for i, (given, size, shape) in enumerate(grids.top_k(n, width, k)):
            name, third = ("top_k_of_slices", size) if i else ("top_k", self.stride)
            sizes = np.int32(n), np.int32(given), np.int32(third), np.int32(k)
            launches.append(self._launch(name, shape, found, room, *out, *sizes))
            found, room = room, room + _KEY * n * k * shape.grid[0]
        return launches

    def _launch(self, name: str, shape: grids.Shape, *args: Any) -> Launch:
        return Launch(self.driver.kernel("sample.cu", name), *shape, args)
