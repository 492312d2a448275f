"""The CPU's memory: zeroed, aligned to cache lines, refused in one line when there is none; places in it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggrun.devices.best import TopK
from ggrun.devices.wire import DTYPES
from ggrun.errors import GgrunError

LINE = 64
"""Bytes of a cache line."""


def zeros(nbytes: int) -> NDArray[np.uint8]:
    """Memory for as long as the array lives; GgrunError when the system has not so much."""
    try:
        memory = np.zeros(nbytes + LINE, np.uint8)
    except MemoryError:
        raise GgrunError(f"cpu: no memory for {nbytes >> 20} MiB") from None
    return memory[-memory.ctypes.data % LINE :][:nbytes]


class CpuPlace:
    """Where a buffer's rows lie, whatever becomes of the buffer. kind: see wire.DTYPES."""

    def __init__(self, width: int, memory: NDArray[np.uint8], kind: str = "f32") -> None:
        self.width, self._memory, self._kind = width, memory, kind
        self._row = width * DTYPES[kind].itemsize
        self._all = memory[: len(memory) // self._row * self._row].view(DTYPES[kind]).reshape(-1, width)

    def array(self, rows: int) -> NDArray[Any]:
        """The first rows, [rows, width]."""
        return self._all[:rows]

    def part(self, row: int) -> "CpuPlace":
        """The rows from this one on."""
        return CpuPlace(self.width, self._memory[row * self._row :], self._kind)


@dataclass(frozen=True)
class CpuTopK:
    """Logits that the best are looked for in, when they are downloaded; the id of the first."""

    logits: CpuPlace
    first: int

    def array(self, rows: int, top: TopK) -> NDArray[np.float32]:
        """Those that are looked at of the first rows."""
        return self.logits.array(rows)[:, : top.among(self.first, self.first + self.logits.width)]
