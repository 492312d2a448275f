"""What comes to the host of a batch: all logits of its outputs, or the best of them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ggrun.devices.base import Device, Place
from ggrun.devices.best import Best
from ggrun.engine.batch import Batch
from ggrun.plan import Range


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
    """Room for what is wanted of a batch; each member of the last stage sends its share."""

    def __init__(self, batch: Batch, vocab: int) -> None:
        self._top, self.rows = batch.top, batch.wanted
        self._logits = np.empty((self.rows, 0 if batch.top else vocab), np.float32)
        self._best: list[tuple[int, Best]] = []

    def fetch(self, device: Device, logits: Place, best: Place, share: Range) -> None:
        """Enqueue that a share of the ids comes from where a device has it.

        best: what Recorder.top_k gave for the logits, with share[0] as the first id
        """
        begin, end = share
        if self._top is None:
            device.download(logits, self.rows, self._logits[:, begin:end])
        else:
            found = Best(self.rows, self._top.k)
            self._best.append((begin, found))
            device.download_top_k(best, self.rows, self._top, found)

    def scores(self) -> Scores:
        """What has come."""
        if self._top is None:
            return Scores(self._logits)
        if len(self._best) == 1:
            ((begin, best),) = self._best
            return Scores(best.logits, best.ids + begin)
        logits = np.concatenate([best.logits for _, best in self._best], axis=1)
        ids = np.concatenate([best.ids + begin for begin, best in self._best], axis=1)
        order = np.lexsort((-logits, ~np.isnan(logits)))  # leaves equals in the order of their ids
        return Scores(np.take_along_axis(logits, order, 1), np.take_along_axis(ids, order, 1))


def joined(parts: Sequence[Scores]) -> Scores:
    """The outputs of several batches, which want the same of each."""
    if len(parts) == 1:
        return parts[0]
    logits = np.concatenate([part.logits for part in parts])
    ids = [part.ids for part in parts if part.ids is not None]
    return Scores(logits, np.concatenate(ids) if ids else None)
