"""The best of many logits: what a sampler needs of a run is a few of them more often than all."""

from dataclasses import dataclass
from math import isnan

import numpy as np
from numpy.typing import NDArray

MOST_K = 128
"""The largest k of a TopK: devices have room for so many."""
_COLUMNS = 1024
"""As few as numpy finds the maxima of at full speed."""


@dataclass(frozen=True)
class TopK:
    """What is enough of a run's outputs: the k best logits of each, of equals the lowest ids.

    k       1 to MOST_K
    words   ids from this one on are not looked at: some models have logits for more than there are words
    """

    k: int
    words: int

    def __post_init__(self) -> None:
        """ValueError for what devices have no room for."""
        if not (1 <= self.k <= MOST_K and self.words >= 0):
            raise ValueError(f"the {self.k} best of {self.words}: k must be between 1 and {MOST_K}")

    def among(self, begin: int, end: int) -> int:
        """How many of the ids from begin to end are looked at."""
        return max(0, min(self.words, end) - begin)


class Best:
    """Room on the host for the k best of rows of logits, which a device fills.

    ids     int32 [rows, k], the best first; what is no number comes before all
    logits  float32 [rows, k]; -inf where there are no more, of which the ids mean nothing
    both    one behind the other, int32 [2, rows, k]: a device copies them as one
    """

    def __init__(self, rows: int, k: int) -> None:
        self.both = np.empty((2, rows, k), np.int32)
        self.ids, self.logits = self.both[0], self.both[1].view(np.float32)

    def fill(self, logits: NDArray[np.float32]) -> None:
        """Find them in logits [rows, width]."""
        k = self.ids.shape[1]
        for row, ids, values in zip(logits, self.ids, self.logits, strict=True):
            found = best_of(row, k)
            if (count := len(found)) < k:
                ids[count:], values[count:] = -1, -np.inf
            ids[:count], values[:count] = found, row[found]


def best_of(logits: NDArray[np.float32], k: int) -> NDArray[np.intp]:
    """The ids of the k best of logits [width], the best first, of equals the lowest.

    Those of -inf are left out. Where some logits are no numbers, the ids of these alone.
    """
    if not (k := min(k, len(logits))):
        return np.empty(0, np.intp)
    if k == 1:
        best = logits.argmax()  # which takes what is no number for the largest
        return np.array([best] if logits[best] != -np.inf else [], np.intp)
    maxima = _maxima(logits, max(16 * k, _COLUMNS))
    if isnan(maxima.max()):
        return np.isnan(logits).nonzero()[0][:k]
    # At least k logits reach the k-th of the maxima, and hardly more: these few are sorted.
    least = np.partition(maxima, -k)[-k] if k < len(maxima) else -np.inf
    ids = (logits >= least if least > -np.inf else logits > -np.inf).nonzero()[0]
    return ids[(-logits[ids]).argsort(kind="stable")[:k]]


def _maxima(logits: NDArray[np.float32], columns: int) -> NDArray[np.float32]:
    """The largest of each of the columns that logits are laid in: of few, each by itself.

    All logits are looked at once for it; to sort so many takes longer than all else that a sampler does.
    """
    if not (rows := len(logits) // columns):
        return logits
    maxima: NDArray[np.float32] = logits[: rows * columns].reshape(rows, columns).max(axis=0)
    if len(rest := logits[rows * columns :]):
        np.maximum(maxima[: len(rest)], rest, out=maxima[: len(rest)])
    return maxima
