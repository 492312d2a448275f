"""Rows on their way from a card to another kind of device, in pinned memory: the host waits for no copy."""

import ctypes
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ggrun.devices.cuda.driver import Allocation, Driver


class PinnedRows:
    """Of one driver. What was given back is kept, as such memory takes long to be had."""

    def __init__(self, driver: Driver) -> None:
        self._driver, self._free = driver, list[Allocation]()

    def take(self, nbytes: int) -> Allocation:
        """So many bytes or more; OutOfMemory where the host has none."""
        for i, memory in enumerate(self._free):
            if memory.nbytes >= nbytes:
                return self._free.pop(i)
        self._free.clear()  # all are too small: batches have grown
        return self._driver.allocate_on_host(nbytes)

    def give(self, memory: Allocation) -> None:
        """Nobody needs it any longer. From any thread."""
        self._free.append(memory)


def rows_in(memory: Allocation, shape: tuple[int, int], dtype: DTypeLike) -> NDArray[Any]:
    """What lies there; to be used while the memory is held."""
    raw = np.ctypeslib.as_array((ctypes.c_uint8 * memory.nbytes).from_address(memory.address))
    nbytes = np.dtype(dtype).itemsize * shape[0] * shape[1]
    found: NDArray[Any] = raw[:nbytes].view(dtype).reshape(shape)
    return found
