"""The runners of a stage, side by side."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ggrun.devices.exchange import AllReduce
from ggrun.engine.batch import Batch
from ggrun.engine.runner import Runner


class LoadedStage:
    """A stage whose members work together: after each half layer they sum what they have.

    sums    how members sum; None where there is nothing to sum
    """

    def __init__(self, runners: Sequence[Runner], sums: AllReduce | None) -> None:
        self.runners, self._sums = runners, sums
        self._steps = list(zip(*(runner.segments for runner in runners), strict=True))

    def run(self, batch: Batch) -> None:
        """Enqueue the programs and the sums between them."""
        for runner in self.runners:
            runner.space.feed(batch)
        for segments in self._steps:
            for segment in segments:
                segment.program.run()
            if self._sums and (parts := [segment.part for segment in segments if segment.part]):
                self._sums.all_reduce(parts, len(batch.tokens))

    def send(self, batch: Batch, to: "LoadedStage", slot: int) -> None:
        """Enqueue the copies of the residual stream to the members of the next stage: all of ours have it."""
        for i, receiver in enumerate(to.runners):
            sender = self.runners[i % len(self.runners)]
            sender.space.send(sender.residual, len(batch.tokens), receiver.space, slot)

    def receive(self, batch: Batch, slot: int) -> None:
        """Enqueue that what was sent is taken in."""
        for runner in self.runners:
            runner.space.receive(slot, len(batch.tokens), runner.residual)

    def download(self, batch: Batch, out: NDArray[np.float32]) -> None:
        """Enqueue that each member's share of the logits comes to the host: out is [outputs, vocab]."""
        for runner in self.runners:
            if runner.logits is not None and len(out):
                begin, end = runner.member.vocab
                runner.space.device.download(runner.logits, len(out), out[:, begin:end])
