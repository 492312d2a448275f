"""The KV cache's book-keeping: which pages of cells belong to which sequence. Devices hold the cells
themselves.

A sequence's positions run from 0 without gaps; position p lies in page p // PAGE of its table. Sequences
grow, step back and go; pages that are let go are used again.
"""

import numpy as np
from numpy.typing import NDArray

from ggrun.errors import GgrunError
from ggrun.plan.facts import PAGE, pages

_OFFSETS = np.arange(PAGE, dtype=np.int32)


class CacheFull(GgrunError):
    """There are no free pages for what was asked."""


class KVCache:
    """Pages for `cells` positions (rounded up to whole pages), shared by up to `sequences` sequences."""

    def __init__(self, cells: int, sequences: int = 1) -> None:
        self.pages = pages(cells)
        self._fresh = 0  # pages from here on were never used
        self._free: list[int] = []  # pages that were let go
        self._tables = np.zeros((sequences, self.pages), np.int32)
        self._lengths = [0] * sequences

    def length(self, sequence: int) -> int:
        """How many positions a sequence has."""
        return self._lengths[sequence]

    def extend(self, sequence: int, n: int) -> NDArray[np.int32]:
        """Room for a sequence's next n positions: their slots (page * PAGE + offset); or CacheFull."""
        begin = self._lengths[sequence]
        held, needed = pages(begin), pages(begin + n)
        if needed - held > self.pages - self._fresh + len(self._free):
            raise CacheFull(
                f"the context of {self.pages * PAGE} is full: {begin} are taken, {n} more do not fit"
            )
        for i in range(held, needed):
            self._tables[sequence, i] = self._take()
        self._lengths[sequence] = begin + n
        first, offset = divmod(begin, PAGE)
        if 0 < n <= PAGE - offset:  # so it is for a token
            slot = self._tables.item(sequence, first) * PAGE + offset
            return np.arange(slot, slot + n, dtype=np.int32)
        slots: NDArray[np.int32] = self._tables[sequence, first:needed, None] * PAGE + _OFFSETS
        return slots.ravel()[offset:][:n]

    def truncate(self, sequence: int, length: int) -> None:
        """Step back: forget the positions from `length` on.

        An exception between two steps, of a Ctrl+C, loses pages at most: none is ever free and taken.
        """
        length = min(length, self._lengths[sequence])
        dropped = self._tables[sequence, pages(length) : pages(self._lengths[sequence])].tolist()
        self._lengths[sequence] = length
        self._free.extend(reversed(dropped))

    def table(self, sequence: int) -> NDArray[np.int32]:
        """The pages of a sequence, in the order of its positions: int32, a view."""
        return self._tables[sequence, : pages(self._lengths[sequence])]

    def _take(self) -> int:
        if self._free:
            return self._free.pop()
        self._fresh += 1
        return self._fresh - 1
