"""One member's share of some half layers on one device: weights, cells, a recorded program."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ggrun.arch.config import Config
from ggrun.devices.base import Cells, Device, Limits
from ggrun.engine.batch import Batch
from ggrun.engine.cache import PAGE
from ggrun.engine.forward import Forward, LayerCells
from ggrun.engine.weights import Weights
from ggrun.errors import GgrunError
from ggrun.gguf import GGUF
from ggrun.plan import Member, Plan, Stage


@dataclass(frozen=True)
class CacheSpec:
    """How large the KV cache is, and in what form its cells are."""

    pages: int
    keys: str = "f16"
    values: str = "f16"

    def layer_bytes(self, config: Config, device: Device, member: Member) -> int:
        """The bytes of one layer's cells on a member's device."""
        heads = member.kv_heads[1] - member.kv_heads[0]
        row = device.row_bytes(self.keys, config.key_dim) + device.row_bytes(self.values, config.value_dim)
        return self.pages * PAGE * heads * row


class Runner:
    """Records its half layers once, then runs batches through them."""

    def __init__(
        self,
        device: Device,
        model: GGUF,
        config: Config,
        stage: Stage,
        member: Member,
        cache: CacheSpec,
        limits: Limits,
    ) -> None:
        self._device, self._config, self._member, self._cache = device, config, member, cache
        begin, end = stage.halves
        ops = device.recorder(limits)
        weights = Weights(model, device)
        forward = Forward(ops, config, weights, member)
        self._first, self._last = begin == 0, end == 2 * config.layers
        self._input = None if self._first else ops.input(config.width)
        x = self._input or forward.embed()
        for half in range(begin, end):
            forward.half(half, x, self._layer_cells() if half % 2 == 0 else None)
        self._output = forward.head(x) if self._last else x
        self._inputs, self._program = ops.inputs, ops.finish()
        self.used_tensors = weights.used

    def run(self, batch: Batch, x: NDArray[np.float32] | None) -> NDArray[np.float32]:
        """The residual stream [n, width] after these half layers, or the logits [outputs, vocab].

        x: the residual stream before them; None for the first stage, which embeds the batch's tokens.
        """
        batch.fill(self._inputs, self._config.experts_used)
        if self._input is not None and x is not None:
            self._device.write(self._input, x)
        self._program.run()
        rows = int(batch.outputs.sum()) if self._last else len(batch.tokens)
        return self._device.read(self._output, rows)

    def _layer_cells(self) -> LayerCells:
        c, heads = self._config, self._member.kv_heads[1] - self._member.kv_heads[0]

        def cells(kind: str, dim: int) -> Cells:
            size = self._cache.pages * PAGE * heads * self._device.row_bytes(kind, dim)
            return Cells(self._device.zeros(size), kind, heads, dim, PAGE)

        return LayerCells(cells(self._cache.keys, c.key_dim), cells(self._cache.values, c.value_dim))


def check_memory(plan: Plan, devices: dict[str, Device], config: Config, cache: CacheSpec) -> None:
    """GgrunError, before anything is loaded, when a device has no room for its part of the KV cache."""
    needed: dict[str, int] = {}
    for stage in plan.stages:
        layers = sum(half % 2 == 0 for half in range(*stage.halves))
        for m in stage.members:
            needed[m.device] = needed.get(m.device, 0) + layers * cache.layer_bytes(
                config, devices[m.device], m
            )
    for name, nbytes in needed.items():
        if nbytes > (free := devices[name].available()):
            raise GgrunError(
                f"{name}: the KV cache of {cache.pages * PAGE} positions takes {nbytes / 2**30:.1f} GiB, "
                f"{free / 2**30:.1f} GiB are free: give a smaller context with -c, or -ctk q8_0 -ctv q8_0"
            )
