"""The step of an RMS norm, which quantizes what it has where products want that."""

from dataclasses import dataclass, replace

import numpy as np

from ggrun.devices.base import Rows
from ggrun.devices.cuda import grids, matvec
from ggrun.devices.cuda.driver import Driver
from ggrun.devices.cuda.products import Quantize
from ggrun.devices.cuda.program import Counts, Launch


@dataclass(frozen=True)
class Norm:
    """A step: the RMS norm of rows, or of each of `groups` equal parts of one."""

    driver: Driver
    over: Rows
    x: int
    weight: int
    y: int
    width: int
    groups: int
    eps: float
    columns: int = 0  # where the rows go as quantized columns too

    @property
    def quantizes(self) -> bool:
        """Whether it can."""
        return self.groups == 1

    def with_columns(self, quantize: Quantize) -> "Norm":
        """The same, which makes the columns of this step."""
        return replace(self, columns=quantize.columns)

    def __call__(self, counts: Counts) -> list[Launch]:
        """One launch."""
        n, width, eps = counts.rows(self.over), np.int32(self.width // self.groups), np.float32(self.eps)
        read = self.x, self.weight, self.y
        if self.columns:
            kernel = self.driver.kernel("columns.cu", "rms_norm_quantize")
            shape = matvec.norm_quantize_shape(n)
            return [Launch(kernel, *shape, (*read, self.columns, width, np.int32(n), eps))]
        kernel, rows = self.driver.kernel("norm.cu", "rms_norm"), self.groups * n
        shape = grids.norm(rows, int(width))
        return [Launch(kernel, *shape, (*read, np.int32(rows), width, np.int32(1), eps))]
