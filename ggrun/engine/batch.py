"""A batch: tokens of any sequences, each with its position, and which of them want logits."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ggrun.devices.base import Inputs, Rows
from ggrun.devices.best import TopK


@dataclass(frozen=True)
class Batch:
    """n tokens that are computed together; all arrays are [n] but `tables`.

    A device may read it late: its arrays must not change any more.
    """

    tokens: NDArray[np.int32]
    positions: NDArray[np.int32]
    sequences: NDArray[np.int32]
    slots: NDArray[np.int32]  # cells of the KV cache
    outputs: NDArray[np.bool_]  # whose logits are wanted
    tables: dict[int, NDArray[np.int32]]  # the pages of each sequence
    top: TopK | None = None  # what is enough of the outputs; None: all logits

    @property
    def wanted(self) -> int:
        """How many tokens' logits are wanted."""
        return int(np.count_nonzero(self.outputs))

    def pieces(self, size: int) -> "list[Batch]":
        """Batches of up to so many of its tokens, in order."""
        n = len(self.tokens)
        return [self._part(slice(i, i + size)) for i in range(0, n, size)] if n > size else [self]

    def _part(self, part: slice) -> "Batch":
        return replace(
            self, tokens=self.tokens[part], positions=self.positions[part], sequences=self.sequences[part],
            slots=self.slots[part], outputs=self.outputs[part],
        )  # fmt: skip

    def fill(self, inputs: Inputs, experts_used: int) -> None:
        """Write it where a device reads it."""
        n, (wanted,) = len(self.tokens), self.outputs.nonzero()
        inputs.counts[Rows.TOKENS], inputs.counts[Rows.OUTPUTS] = n, len(wanted)
        inputs.counts[Rows.PAIRS], inputs.top = n * experts_used, self.top
        inputs.tokens[:n], inputs.positions[:n] = self.tokens, self.positions
        inputs.sequences[:n], inputs.slots[:n] = self.sequences, self.slots
        inputs.outputs[: len(wanted)] = wanted
        for sequence, table in self.tables.items():
            inputs.tables[sequence, : len(table)] = table
