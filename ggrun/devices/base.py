"""What a device must do. A kind of device is one file with a class of this shape in it.

A forward pass is recorded once: each call on a Recorder notes an operation and returns the Buffer that it
will fill. `finish` turns the notes into a Program, which runs any number of times: how many rows there are,
the tokens and their places are read from Inputs at each run. A Buffer's memory is used again as soon as
Python drops the Buffer.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ggrun.gguf import Tensor

Memory = Any
"""The device's own handle of some bytes; only the device that made it may touch it."""


class Rows(IntEnum):
    """What the rows of a buffer are: there are as many as Inputs.counts says at each run."""

    TOKENS = 0
    OUTPUTS = 1  # the tokens whose logits are wanted
    PAIRS = 2  # of a token and one of its experts


Buffer = Any
"""Rows of float32, `width` a row: has the attributes rows (Rows) and width."""

Weight = Any
"""A matrix, or one a expert, in its own format: has the attributes rows and columns."""

Routing = Any
"""Which tokens go to which experts, with what weights."""


@dataclass(frozen=True)
class Limits:
    """The most that one run will be given."""

    tokens: int
    outputs: int
    sequences: int
    pages: int  # of one sequence


class Inputs:
    """What changes from run to run, on the host: written before a run, read by the device during it."""

    def __init__(self, limits: Limits) -> None:
        self.counts = np.zeros(len(Rows), np.int64)
        self.tokens = np.zeros(limits.tokens, np.int32)
        self.positions = np.zeros(limits.tokens, np.int32)
        self.sequences = np.zeros(limits.tokens, np.int32)  # rows of tables
        self.slots = np.zeros(limits.tokens, np.int32)  # where each token's keys and values go
        self.outputs = np.zeros(limits.outputs, np.int32)  # which tokens' logits are wanted
        self.tables = np.zeros((limits.sequences, limits.pages), np.int32)  # the pages of each sequence


@dataclass(frozen=True)
class Cells:
    """The keys or the values of one layer: [page, head, position in page], rows of `dim` values."""

    memory: Memory
    kind: str  # f32, f16, bf16, q8_0
    heads: int
    dim: int
    page: int


class Program(Protocol):
    """A recorded pass."""

    def run(self) -> None:
        """Run it over what Inputs hold; returns when it is done."""


class Recorder(Protocol):
    """The operations that a forward pass is made of. Values are float32, but for weights."""

    inputs: Inputs

    def input(self, width: int) -> Buffer:
        """Rows of tokens that the host writes before each run (see Device.write)."""

    def embed(self, table: Weight) -> Buffer:
        """The table's rows of the input tokens."""

    def norm(self, x: Buffer, weight: Memory, eps: float, groups: int = 1) -> Buffer:
        """RMS norm of each of `groups` equal parts of a row, times weight [width / groups]."""

    def linear(self, x: Buffer, w: Weight, scale: float = 1.0, bias: Memory | None = None) -> Buffer:
        """x . w^T * scale + bias."""

    def rope_table(
        self, frequencies: Memory, dims: int, magnitude: float, slope: float, period: float
    ) -> Any:
        """The cosines and sines of the input positions, for `rope`; see kernels/cpu/elementwise.py."""

    def rope(self, x: Buffer, table: Any, heads: int, neighbours: bool) -> None:
        """Rotate every head of x in place."""

    def store(self, x: Buffer, cells: Cells) -> None:
        """Keep keys or values in the input slots."""

    def attend(self, q: Buffer, keys: Cells, values: Cells, heads: int, scale: float) -> Buffer:
        """Attention of each token over its sequence, up to its own position."""

    def swiglu(self, gate: Buffer, up: Buffer) -> Buffer:
        """silu(gate) * up."""

    def add(self, x: Buffer, y: Buffer) -> None:
        """y += x."""

    def pick(self, x: Buffer) -> Buffer:
        """The rows of the tokens whose logits are wanted."""

    def route(self, logits: Buffer, used: int, normalize: bool) -> Routing:
        """Each token's `used` most probable experts."""

    def spread(self, x: Buffer, routing: Routing) -> Buffer:
        """Each token's row, once for each of its experts, sorted by expert."""

    def experts(self, x: Buffer, w: Weight, routing: Routing, scales: Memory | None = None) -> Buffer:
        """Each pair's row times its expert's matrix."""

    def combine(self, x: Buffer, routing: Routing) -> Buffer:
        """Each token's weighted sum of its pairs."""

    def finish(self) -> Program:
        """The program of all that was recorded."""


class Device(Protocol):
    """Memory, and a way to record programs for it."""

    name: str

    def available(self) -> int:
        """Bytes that can be taken now."""

    def bandwidth(self) -> float:
        """Bytes a second that it reads from its memory, measured now."""

    def recorder(self, limits: Limits) -> Recorder:
        """A new recorder, with Inputs of its own."""

    def zeros(self, nbytes: int) -> Memory:
        """Memory for as long as the handle lives; GgrunError when there is none."""

    def vector(self, values: NDArray[np.float32]) -> Memory:
        """A float32 vector on the device."""

    def weight(self, tensor: Tensor, rows: tuple[int, int], columns: tuple[int, int]) -> Weight:
        """A tensor's block of rows and columns, in its own format; a third dimension: experts."""

    def write(self, buffer: Buffer, values: NDArray[np.float32]) -> None:
        """Fill the first rows of an input buffer."""

    def read(self, buffer: Buffer, rows: int) -> NDArray[np.float32]:
        """A copy of the first rows."""

    def row_bytes(self, kind: str, dim: int) -> int:
        """The bytes of a cache row of `dim` values."""

    def interrupt(self) -> None:
        """Make programs end with Interrupted, now and until `resume`; from any thread."""

    def resume(self) -> None:
        """Let programs run again; waits for one that is running, which may have to see an interrupt."""

    def close(self) -> None:
        """Give back threads and memory."""
