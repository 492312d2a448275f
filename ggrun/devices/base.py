"""What a device must do. A kind of device is one file with a class of this shape in it.

A forward pass is recorded once: each call on a Recorder notes an operation and returns the Buffer that it
will fill. `finish` turns the notes into a Program, which runs any number of times: how many rows there are,
the tokens and their places are read from Inputs at each run. A Buffer's memory is used again as soon as
Python drops the Buffer.

Nothing of this runs at once: programs, inputs, copies, sums and downloads are enqueued on the device's
stream, and done in that order. What another stream must have done before is for events to say.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import accumulate
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ggrun.devices.best import Best, TopK
from ggrun.devices.streams import Stream, Work
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

Place = Any
"""Where the rows of a buffer lie, for what is enqueued between programs. It keeps no buffer from being
dropped: what a place has is good until a program runs that was recorded later. Its values are of a kind that
wire.DTYPES has: float32, or bfloat16 in mailboxes of that kind."""

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


_INPUTS = ("tokens", "positions", "sequences", "slots", "outputs", "tables")


def _zeros(n: int) -> NDArray[np.int32]:
    return np.zeros(n, np.int32)


class Inputs:
    """What changes from run to run: written before a run (see Recorder.feed), read during it.

    words    all but the counts, one behind the other: a device copies them as one
    top      what is enough of the outputs; None: all logits are wanted
    room     gives memory for so many words, full of zeros
    """

    def __init__(self, limits: Limits, room: Callable[[int], NDArray[np.int32]] = _zeros) -> None:
        t = limits.tokens
        self.counts = np.zeros(len(Rows), np.int64)
        self.top: TopK | None = None
        self.offsets = dict(zip(_INPUTS, accumulate((0, t, t, t, t, limits.outputs)), strict=True))
        """Where each of the following begins in words."""
        self.words = room(self.offsets["tables"] + limits.sequences * limits.pages)
        self.tokens = self._words("tokens", t)
        self.positions = self._words("positions", t)
        self.sequences = self._words("sequences", t)  # rows of tables
        self.slots = self._words("slots", t)  # where each token's keys and values go
        self.outputs = self._words("outputs", limits.outputs)  # which tokens' logits are wanted
        # The pages of each sequence.
        self.tables = self.words[self.offsets["tables"] :].reshape(limits.sequences, limits.pages)

    def _words(self, name: str, size: int) -> NDArray[np.int32]:
        return self.words[self.offsets[name] :][:size]


@dataclass(frozen=True)
class Cells:
    """The keys or the values of one layer: [page, head, position in page], rows of `dim` values."""

    memory: Memory
    kind: str  # f32, f16, bf16, q8_0
    heads: int
    dim: int
    page: int
    on_host: bool = False  # the memory is the host's: see Device.zeros


class Program(Protocol):
    """A recorded pass, or a part of one."""

    def run(self) -> None:
        """Enqueue it; it runs over what Inputs hold then."""


class Recorder(Protocol):
    """The operations that a forward pass is made of. Values are float32, but for weights."""

    def input(self, width: int) -> Buffer:
        """Rows of tokens that are written between programs: by a copy, a sum or the host."""

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
        """Keep keys or values in the input slots. x is used up, as `add` says."""

    def attend(self, q: Buffer, keys: Cells, values: Cells, heads: int, scale: float) -> Buffer:
        """Attention of each token over its sequence, up to its own position."""

    def swiglu(self, gate: Buffer, up: Buffer) -> Buffer:
        """silu(gate) * up."""

    def add(self, x: Buffer, y: Buffer) -> None:
        """y += x, which is used up: what it has then is of no use."""

    def pick(self, x: Buffer) -> Buffer:
        """The rows of the tokens whose logits are wanted."""

    def top_k(self, logits: Buffer, first: int) -> Place:
        """The best logits of each row, in runs whose Inputs.top wants no more: see Device.download_top_k.

        first: the id of a row's first logit
        """

    def route(self, logits: Buffer, used: int, normalize: bool) -> Routing:
        """Each token's `used` most probable experts."""

    def spread(self, x: Buffer, routing: Routing) -> Buffer:
        """Each token's row, once for each of its experts, sorted by expert."""

    def experts(self, x: Buffer, w: Weight, routing: Routing, scales: Memory | None = None) -> Buffer:
        """Each pair's row times its expert's matrix."""

    def combine(self, x: Buffer, routing: Routing) -> Buffer:
        """Each token's weighted sum of its pairs."""

    def finish(self) -> Program:
        """The program of all that was recorded since the one before. They share buffers and inputs."""

    def place(self, x: Buffer) -> Place:
        """Where a buffer's rows lie."""

    def mailbox(self, width: int, kind: str = "f32") -> Place:
        """Rows of tokens for what other devices send, at any time: no operation's buffer lies there."""

    def feed(self, write: Callable[[Inputs], None]) -> None:
        """Enqueue the writing of inputs. What `write` reads must not change any more."""


class Slot(Protocol):
    """Memory of a device where weights lie by turns: they are loaded while it computes, again and again."""

    @property
    def stream(self) -> Stream:
        """Where that is enqueued, beside the device's own."""

    def begin(self) -> None:
        """What is placed from now on lies where all that was placed before does."""

    def weight(self, tensor: Tensor, rows: tuple[int, int], columns: tuple[int, int]) -> tuple[Weight, Work]:
        """A block, see Device.weight, behind those placed before; and what enqueues that it is loaded.

        GgrunError when there is no room behind them.
        """


class Device(Protocol):
    """Memory, a stream, and a way to record programs for them."""

    name: str

    @property
    def stream(self) -> Stream:
        """Where its work is enqueued."""

    def available(self) -> int:
        """Bytes that can be taken now."""

    def bandwidth(self) -> float:
        """Bytes a second that it reads from its memory, measured now; GgrunError when too little is free."""

    def recorder(self, limits: Limits) -> Recorder:
        """A new recorder, with Inputs of its own."""

    def zeros(self, nbytes: int, what: str, on_host: bool = False) -> Memory:
        """Memory for as long as the handle lives; GgrunError, which says for what, when there is none.

        on_host: in the host's memory, which the device reads and writes from where it is
        """

    def vector(self, values: NDArray[np.float32], what: str = "a vector") -> Memory:
        """A float32 vector on the device; GgrunError, which says for what, when there is no memory."""

    def weight(self, tensor: Tensor, rows: tuple[int, int], columns: tuple[int, int]) -> Weight:
        """A tensor's block of rows and columns, in its own format; a third dimension: experts.

        The memory is taken now (GgrunError when there is none), what needs loading is enqueued: so a model
        that does not fit is refused before any of it is loaded.
        """

    def slot(self, nbytes: int) -> Slot | None:
        """Memory for weights by turns; None for a device that has no memory of its own to load them to.

        GgrunError when there is not so much.
        """

    def rows(self, weight: Weight, rows: tuple[int, int]) -> Weight:
        """Some rows of a weight, which take no memory of their own."""

    def row_bytes(self, kind: str, dim: int) -> int:
        """The bytes of a cache row of `dim` values."""

    def part(self, place: Place, row: int) -> Place:
        """Where a place's rows lie from this one on."""

    def write(self, place: Place, values: NDArray[Any]) -> None:
        """Fill the first rows now; nothing that is enqueued may touch them. values: as wire.DTYPES says."""

    def copy(self, source: Place, rows: int, device: "Device", target: Place) -> None:
        """Enqueue a copy of the first rows to this device's or another one's memory, of the same kind."""

    def narrow(self, source: Place, rows: int, target: Place) -> None:
        """Enqueue that the first rows, of float32, are rounded to a place of bfloat16."""

    def sum(self, places: Sequence[Place], rows: int, target: Place) -> None:
        """Enqueue target = places[0] + places[1] + ..., of one kind, added as float32 in this order.

        target, of float32, is one of the places, or of other memory; what the others had is lost.
        """

    def download(self, source: Place, rows: int, out: NDArray[np.float32]) -> None:
        """Enqueue a copy of the first rows to the host: out is [rows, width], a part of longer rows maybe."""

    def download_top_k(self, source: Place, rows: int, top: TopK, best: Best) -> None:
        """Enqueue that the first rows of what Recorder.top_k gave come to the host: ids count from `first`.

        top: what Inputs had in that run; best: room for [rows, top.k]
        """

    def interrupt(self) -> None:
        """Make programs end with Interrupted, now and until `resume`; from any thread."""

    def resume(self) -> None:
        """Let programs run again; waits for one that is running, which may have to see an interrupt."""

    def close(self) -> None:
        """Give back threads and memory."""
