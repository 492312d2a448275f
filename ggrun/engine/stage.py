"""What batches pass one after the other: stages whose runners are here, and what looks like one."""

from collections.abc import Sequence
from functools import partial
from typing import Protocol

from ggrun.devices.exchange import AllReduce
from ggrun.devices.together import PIECE_BY_PIECE, Together
from ggrun.engine.batch import Batch
from ggrun.engine.outputs import Outputs
from ggrun.engine.runner import Runner
from ggrun.engine.workspace import Sender


class Hop(Protocol):
    """A stage, or several that follow each other in another process. Nothing of this waits."""

    def run(self, batch: Batch) -> None:
        """Enqueue what is computed."""

    def accept(self, senders: Sequence[Sender], batch: Batch, slot: int) -> None:
        """Enqueue, in the senders' streams, that the residual stream comes here. All senders have it."""

    def receive(self, batch: Batch, slot: int) -> None:
        """Enqueue that what was accepted is taken in."""

    def send(self, batch: Batch, to: "Hop", slot: int) -> None:
        """Enqueue that the next one gets the residual stream."""

    def download(self, batch: Batch, outputs: Outputs) -> None:
        """Enqueue that what is wanted of the batch's outputs comes to the host."""


class LoadedStage:
    """A stage whose members work together: after each half layer they sum what they have.

    sums        how members sum; None where there is nothing to sum
    together    how what they do is enqueued
    """

    def __init__(
        self, runners: Sequence[Runner], sums: AllReduce | None, together: Together = PIECE_BY_PIECE
    ) -> None:
        self.runners, self._sums, self._together = runners, sums, together
        self._steps = list(zip(*(runner.segments for runner in runners), strict=True))

    def run(self, batch: Batch) -> None:
        """Enqueue the programs and the sums between them."""
        for runner in self.runners:
            runner.space.feed(batch)
        self._together.run(partial(self._enqueue, len(batch.tokens)))

    def _enqueue(self, rows: int) -> None:
        for segments in self._steps:
            for segment in segments:
                segment.program.run()
            if self._sums and (parts := [segment.part for segment in segments if segment.part]):
                self._sums.all_reduce(parts, rows)

    def accept(self, senders: Sequence[Sender], batch: Batch, slot: int) -> None:
        """Enqueue the copies of the residual stream to all members, each from another sender."""
        for i, runner in enumerate(self.runners):
            runner.space.accept(senders[i % len(senders)], len(batch.tokens), slot)

    def receive(self, batch: Batch, slot: int) -> None:
        """Enqueue that what was accepted is taken in."""
        for runner in self.runners:
            runner.space.receive(slot, len(batch.tokens), runner.residual)

    def send(self, batch: Batch, to: Hop, slot: int) -> None:
        """Push the residual stream on: all of ours have it."""
        to.accept(self.runners, batch, slot)

    def download(self, batch: Batch, outputs: Outputs) -> None:
        """Enqueue that each member's share of the logits, or the best of it, comes to the host."""
        rows = outputs.rows
        for runner in self.runners:
            device, (begin, end) = runner.space.device, runner.member.vocab
            if begin == end or not rows:
                continue
            if batch.top:
                device.download_top_k(runner.best, rows, batch.top, outputs.best(begin))
            else:
                device.download(runner.logits, rows, outputs.logits[:, begin:end])
