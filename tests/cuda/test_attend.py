"""Attention with a product behind it: what is launched, and that no memory is taken too early."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from ggrun.devices.base import Cells, Inputs, Limits
from ggrun.devices.cuda.attention import row_bytes
from ggrun.devices.cuda.device import Cuda
from ggrun.devices.cuda.flash import Attention
from ggrun.devices.cuda.memory import CudaBuffer
from ggrun.devices.cuda.recorder import CudaRecorder
from ggrun.gguf import FORMATS, Tensor
from tests.cuda.conftest import Card
from tests.cuda.kv import PAGE
from tests.cuda.weights import column_bytes, quantized, random_rows

ONE_CARD = pytest.mark.parametrize("card", ["800-random"], indirect=True)
HEADS, KV_HEADS, PAGES, ROWS = 4, 2, 20, 48


@dataclass
class Layer:
    """A recorder, cells that are full of random numbers, and queries."""

    card: Card
    dim: int = 32
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def __post_init__(self) -> None:
        self.device = Cuda(self.card.driver, "card")
        self.ops: CudaRecorder = self.device.recorder(Limits(PAGES * PAGE, PAGES * PAGE, 1, PAGES))
        self.width = HEADS * self.dim

    def cells(self) -> Cells:
        count = PAGES * PAGE * KV_HEADS * row_bytes("f16", self.dim) // 2
        halves = self.rng.standard_normal(count).astype(np.float16)
        memory = self.device.zeros(halves.nbytes, "cells")
        self.device.driver.write(memory.address, halves)
        return Cells(memory, "f16", KV_HEADS, self.dim, PAGE)

    def queries(self) -> CudaBuffer:
        q = self.ops.input(self.width)
        self.device.write(self.ops.place(q), self.rng.standard_normal((PAGES * PAGE, self.width)))
        return q

    def attend(self) -> CudaBuffer:
        return self.ops.attend(self.queries(), self.cells(), self.cells(), HEADS, self.dim**-0.5)

    def product(self, x: CudaBuffer, name: str = "Q8_0") -> CudaBuffer:
        tensor = Tensor(
            name, (self.width, ROWS), FORMATS[name], random_rows(name, ROWS, self.width, self.rng)
        )
        return self.ops.linear(x, self.device.weight(tensor, (0, ROWS), (0, self.width)))

    def feed(self, context: int, tokens: int) -> None:
        def write(inputs: Inputs) -> None:
            inputs.counts[:] = tokens
            inputs.tables[0] = np.arange(PAGES)
            inputs.positions[:tokens] = np.arange(context - tokens, context)

        self.ops.feed(write)

    def launched(self, program: Any, context: int, tokens: int) -> list[str]:
        self.feed(context, tokens)
        return [launch.name for launch in program.launches(self.ops.counts)]

    def read(self, address: int, *shape: int, dtype: Any = np.float32) -> np.ndarray:
        out = np.empty(shape, dtype)
        self.device.driver.download(out, address)
        self.device.stream.synchronize()
        return out


@ONE_CARD
def test_what_is_launched(card: Card) -> None:
    """Decode is one launch, with its columns, whether there are parts or not; a prompt takes up to three."""
    layer = Layer(card)
    layer.product(layer.attend())
    program = layer.ops.finish()
    for context in (3, 1000):
        for tokens in (1, 3):
            assert layer.launched(program, context, tokens) == ["attention_decode", "matvec"]
    assert layer.launched(program, 40, 40) == ["attention_prefill", "quantize", "matmul"]
    in_parts = layer.launched(program, PAGES * PAGE, 9)
    assert in_parts[:3] == ["attention_prefill", "attention_combine", "quantize"]


@ONE_CARD
def test_others_that_want_what_comes_of_it(card: Card) -> None:
    """Floats alone want no columns; where a block would be of two heads, a launch makes them."""
    layer = Layer(card)
    layer.product(layer.attend(), "F16")
    assert layer.launched(layer.ops.finish(), 1000, 1) == ["attention_decode", "matvec"]
    y = layer.attend()
    for name in ("F16", "Q8_0", "Q8_0"):
        layer.product(y, name)
    launched = layer.launched(layer.ops.finish(), 1000, 1)
    assert launched.count("attention_decode") == 1
    assert launched.count("quantize") == 1  # the product with floats came between
    narrow = Layer(card, dim=24)
    narrow.product(narrow.attend())
    assert narrow.launched(narrow.ops.finish(), 1000, 1) == ["attention_decode", "quantize", "matvec"]


@ONE_CARD
@pytest.mark.parametrize("context", [50, 1000])
def test_columns_are_of_what_it_has(card: Card, context: int) -> None:
    layer = Layer(card)
    y = layer.attend()
    layer.product(y)
    assert y.quantized is not None
    program = layer.ops.finish()
    for tokens in (1, 3, 1):  # counters are as they were behind each
        layer.feed(context, tokens)
        program.run()
        rows = layer.read(y.address, tokens, layer.width)
        size = column_bytes(layer.width)
        columns = layer.read(y.quantized.address, tokens, size, dtype=np.uint8)
        np.testing.assert_array_equal(columns, quantized(rows))
    assert np.isfinite(rows).all()


@ONE_CARD
def test_columns_do_not_lie_where_attention_still_reads(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    """What parts leave is of the size of columns here, and may be used again behind these only."""
    layer = Layer(card)
    size = PAGES * PAGE * column_bytes(layer.width)
    monkeypatch.setattr(Attention, "scratch_bytes", lambda self, shape: size)
    y = layer.attend()
    read = [buffer.address for buffer in y.used]
    layer.product(y)
    assert y.quantized is not None
    assert y.quantized.address not in read
    again = layer.attend()
    assert [buffer.address for buffer in again.used][1] == read[1]
