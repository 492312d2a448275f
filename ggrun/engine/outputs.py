"""What comes to the host of a batch: all logits of its outputs, or the best of them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ggrun.devices.best import Best
from ggrun.engine.batch import Batch


class Scores(NamedTuple):
    """Logits of n outputs, float32 [n, m].

    ids   whose they are, int [n, m]: the best first, of equals the lower id, what is no number before all;
          None: those of all ids, in order
    """

    logits: NDArray[np.float32]
    ids: NDArray[np.int32] | None = None

    def last(self, words: int) -> "Scores":
        """Those of the last output [m], without ids from `words` on."""
        return Scores(self.logits[-1, :words]) if self.ids is None else Scores(self.logits[-1], self.ids[-1])


class Outputs:
    """Room for what is wanted of a batch, which the members of the last stage fill.

    rows    how many outputs there are
    logits  float32 [rows, vocab], where the caller wants them or in an own place; [rows, 0] where the best
            are enough
    """

    def __init__(self, batch: Batch, vocab: int, logits: NDArray[np.float32] | None = None) -> None:
        self.rows, self._top = batch.wanted, batch.top
        if logits is None or batch.top:
            logits = np.empty((self.rows, 0 if batch.top else vocab), np.float32)
        self.logits = logits
        self._best: list[tuple[int, Best]] = []

    def best(self, first: int) -> Best:
        """Room for the best of a share whose first id is `first`; asked for in the order of the shares."""
        assert self._top is not None
        self._best.append((first, Best(self.rows, self._top.k)))
        return self._best[-1][1]

    def scores(self) -> Scores:
        """What has come."""
        if self._top is None:
            return Scores(self.logits)
        shares = self._best or [(0, Best(0, self._top.k))]  # nobody sends the best of no outputs
        if len(shares) == 1:
            ((first, best),) = shares
            return Scores(best.logits, best.ids + first if first else best.ids)
        logits = np.concatenate([best.logits for _, best in shares], axis=1)
        ids = np.concatenate([best.ids + first for first, best in shares], axis=1)
        order = np.lexsort((-logits, ~np.isnan(logits)))  # leaves equals in the order of their ids
        order = order[:, : self._top.k]
        return Scores(np.take_along_axis(logits, order, 1), np.take_along_axis(ids, order, 1))


def joined(parts: Sequence[Scores]) -> Scores:
    """The outputs of several batches, which want the same of each."""
    if len(parts) == 1:
        return parts[0]
    logits = np.concatenate([part.logits for part in parts])
    ids = [part.ids for part in parts if part.ids is not None]
    return Scores(logits, np.concatenate(ids) if ids else None)
