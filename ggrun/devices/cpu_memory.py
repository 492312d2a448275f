"""The CPU's memory: zeroed, aligned to cache lines, and refused in one line when there is none."""

import numpy as np
from numpy.typing import NDArray

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
