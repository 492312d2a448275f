"""The KV cache's book-keeping: which pages of cells belong to which sequence. Devices hold the cells
themselves.

A sequence's positions run from 0 without gaps; position p lies in page p // PAGE of its table. Sequences
grow, step back and go; pages that are let go are used again.
"""

import numpy as np
from numpy.typing import NDArray

from ggrun.errors import GgrunError

PAGE = 64
"""Positions in a page."""


class CacheFull(GgrunError):
    """There are no free pages for what was asked."""


def pages_for(positions: int) -> int:
    """How many pages hold so many positions."""
    return -(-positions // PAGE)


class KVCache:
    """Pages for `cells` positions (rounded up to whole pages), shared by up to `sequences` sequences."""

    def __init__(self, cells: int, sequences: int = 1) -> None:
        self.pages = pages_for(cells)
        self._fresh = 0  # pages from here on were never used
        self._free: list[int] = []  # pages that were let go
        self._tables: list[list[int]] = [[] for _ in range(sequences)]
        self._lengths = [0] * sequences

    def length(self, sequence: int) -> int:
        """How many positions a sequence has."""
        return self._lengths[sequence]

    def extend(self, sequence: int, n: int) -> NDArray[np.int32]:
        """Room for a sequence's next n positions: their slots (page * PAGE + offset); or CacheFull."""
        table, begin = self._tables[sequence], self._lengths[sequence]
        missing = pages_for(begin + n) - len(table)
        if missing > self.pages - self._fresh + len(self._free):
            raise CacheFull(
                f"the context of {self.pages * PAGE} is full: {begin} are taken, {n} more do not fit"
            )
        table.extend(self._take() for _ in range(missing))
        self._lengths[sequence] = begin + n
        positions = np.arange(begin, begin + n)
        return (np.array(table, np.int32)[positions // PAGE] * PAGE + positions % PAGE).astype(np.int32)

    def truncate(self, sequence: int, length: int) -> None:
        """Step back: forget the positions from `length` on."""
        table = self._tables[sequence]
        keep = pages_for(length)
        self._free.extend(reversed(table[keep:]))
        del table[keep:]
        self._lengths[sequence] = min(length, self._lengths[sequence])

    def table(self, sequence: int) -> list[int]:
        """The pages of a sequence, in the order of its positions."""
        return self._tables[sequence]

    def _take(self) -> int:
        if self._free:
            return self._free.pop()
        self._fresh += 1
        return self._fresh - 1
