"""One member's share of some half layers on one device: weights, cells, recorded programs."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ggrun.arch.config import Config
from ggrun.devices.base import Buffer, Cells, Device, Place, Program
from ggrun.devices.exchange import Part
from ggrun.devices.streams import Stream
from ggrun.engine.forward import Forward, LayerCells
from ggrun.engine.weights import Weights
from ggrun.engine.workspace import Workspace
from ggrun.plan import Member, Stage
from ggrun.plan.facts import PAGE


@dataclass(frozen=True)
class CacheSpec:
    """How large the KV cache is, and in what form its cells are."""

    pages: int
    keys: str = "f16"
    values: str = "f16"
    on_host: bool = False
    """Whether the cells lie in the host's memory; a device with memory of its own reads them from there."""


@dataclass(frozen=True)
class Segment:
    """A program; and the part of a sum that it leaves, where others have the other parts."""

    program: Program
    part: Part | None


class Runner:
    """Records its half layers once, in segments: programs end where members must sum what they have.

    `residual` is where the residual stream comes in and goes out, `logits` where the member's share of these
    is, and `best` what Recorder.top_k gives of it.

    weights    in place of those that the runners of a device share
    """

    def __init__(
        self, space: Workspace, config: Config, stage: Stage, member: Member, cache: CacheSpec,
        *, first: bool, last: bool, weights: Weights | None = None,
    ) -> None:  # fmt: skip
        self.space, self.member = space, member
        self._config, self._cache = config, cache
        ops = space.ops
        forward = Forward(ops, config, weights or space.weights, member)
        x = forward.embed() if first else ops.input(config.width)
        self.segments: list[Segment] = []
        for half in range(*stage.halves):
            part = forward.half(half, x, self._layer_cells(half))
            if len(stage.members) > 1:
                part = self._end_segment(part)
            if part is not None:
                ops.add(part, x)
        logits = forward.head(x) if last and member.vocab[0] < member.vocab[1] else None
        self.best: Place | None = None if logits is None else ops.top_k(logits, member.vocab[0])
        self.segments.append(Segment(ops.finish(), None))
        self.residual: Place = ops.place(x)
        self.logits: Place | None = None if logits is None else ops.place(logits)

    @property
    def stream(self) -> Stream:
        """The device's."""
        return self.space.device.stream

    def copy(self, rows: int, device: Device, place: Place) -> None:
        """Enqueue a copy of the residual stream's first rows to a place of any device."""
        self.space.device.copy(self.residual, rows, device, place)

    def download(self, rows: int, out: NDArray[np.float32]) -> None:
        """Enqueue a copy of the residual stream's first rows to the host: out is [rows, width]."""
        self.space.device.download(self.residual, rows, out)

    def _end_segment(self, part: Buffer | None) -> Buffer:
        """End the program before a sum; gives the buffer that will have the sum when the next one begins."""
        ops = self.space.ops
        total = ops.input(self._config.width) if part is None else part
        self.segments.append(Segment(ops.finish(), Part(ops.place(total), empty=part is None)))
        return total

    def _layer_cells(self, half: int) -> LayerCells | None:
        c, device, heads = self._config, self.space.device, self.member.kv_heads[1] - self.member.kv_heads[0]
        if half % 2 or not heads:
            return None

        def cells(kind: str, dim: int) -> Cells:
            size = self._cache.pages * PAGE * heads * device.row_bytes(kind, dim)
            memory = device.zeros(size, f"the KV cache of layer {half // 2}", self._cache.on_host)
            return Cells(memory, kind, heads, dim, PAGE, self._cache.on_host)

        return LayerCells(cells(self._cache.keys, c.key_dim), cells(self._cache.values, c.value_dim))
