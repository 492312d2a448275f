"""Records operations for a card: steps that know what to launch for as many rows as there are at each run.

Everything goes to one stream, in order, so that nothing has to wait but the stream itself, and memory of a
dropped buffer can be used by what is recorded later.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ggrun.devices.base import Cells, Inputs, Limits, Rows
from ggrun.devices.cuda import gemm, grids, matvec, top_k
from ggrun.devices.cuda.attention import Shape, bucket, counter_bytes
from ggrun.devices.cuda.driver import Driver
from ggrun.devices.cuda.feed import Feed
from ggrun.devices.cuda.flash import Attend, Attention
from ggrun.devices.cuda.gemm import ByGemm, GemmFrom, ToHalves
from ggrun.devices.cuda.memory import CudaBuffer, CudaMemory, CudaPlace, CudaWeight, Pool, address_of
from ggrun.devices.cuda.merged import merged
from ggrun.devices.cuda.norm import Norm
from ggrun.devices.cuda.products import (
    Experts,
    Linear,
    Quantize,
    SwiGLU,
    column_bytes,
    quantized,
    scratch_bytes,
)
from ggrun.devices.cuda.program import Counts, CudaProgram, Launch, Step
from ggrun.devices.cuda.rope_store import Heads, Rope, RopeStore, Store
from ggrun.devices.wire import DTYPES
from ggrun.kernels.code_books import format_defines

_NEVER = GemmFrom()


@dataclass(frozen=True)
class _Routing:
    used: int
    experts: int
    weights: CudaBuffer
    starts: CudaBuffer
    tokens: CudaBuffer
    places: CudaBuffer


@dataclass(frozen=True)
class _RopeTable:
    angles: CudaBuffer
    dims: int


@dataclass(frozen=True)
class N:
    """An argument that is a multiple of the number of rows."""

    times: int = 1
    kind: type[np.int32] | type[np.int64] = np.int32

    def of(self, n: int) -> Any:
        """The argument for n rows."""
        return self.kind(self.times * n)


class CudaRecorder:
    """See base.Recorder for what the operations mean.

    allocate    gives memory for buffers
    check       raises Interrupted when the device is
    gemm_from   which products are cuBLAS's
    counts      of what it was fed with
    """

    def __init__(
        self,
        driver: Driver,
        limits: Limits,
        allocate: Callable[[int], CudaMemory],
        check: Callable[[], None],
        gemm_from: GemmFrom = _NEVER,
    ) -> None:
        self._driver, self._limits, self._check, self._gemm_from = driver, limits, check, gemm_from
        self._memory = Pool(allocate)
        self._steps: list[Step] = []
        self._begun = 0  # steps before this one are in programs
        self._keep: list[Any] = []
        self._pairs_a_token = 0
        self._feed = Feed(driver, limits)
        self._offsets = self._feed.offsets
        self._inputs = self._memory.new(self._feed.nbytes)
        self.counts = Counts(0, 0, 0, 0, bucket(1))
        arrived = self._memory.new(counter_bytes(driver.multiprocessors))
        driver.fill(arrived.address, 0, arrived.nbytes)
        inputs = {name: self._input(name) for name in self._offsets}
        self._attention = Attention(driver, limits, inputs, arrived.address)

    # ---------------------------------------------------------------- recording

    def _add(self, step: Step, *written: CudaBuffer) -> None:
        for buffer in written:
            buffer.quantized, buffer.halves, buffer.step, buffer.used = None, None, step, ()
        self._steps.append(step)

    def _last(self, x: CudaBuffer, back: int = 1) -> Step | None:
        """The step that wrote x, if it is the last one (or the one `back`) and can still be changed."""
        step = self._recent(back)
        return step if step is x.step else None

    def _recent(self, back: int = 1) -> Step | None:
        """The last step (or the one `back`), if it can still be changed."""
        at = len(self._steps) - back
        return self._steps[at] if at >= self._begun else None

    def _record(
        self,
        file: str,
        name: str,
        over: Rows,
        shape: Callable[[int], grids.Shape],
        args: Sequence[Any],
        *written: CudaBuffer,
        **defines: str | int,
    ) -> None:
        """A kernel that is launched alike for any number n of rows of a kind.

        shape says the grid and block for n. args are what the kernel takes: addresses, numpy scalars, things
        that have an address, and an N for each number that depends on n.
        """
        kernel = self._driver.kernel(file, name, **defines)
        self._keep += [arg for arg in args if isinstance(arg, CudaMemory)]
        # Addresses: a buffer that a step holds would never be dropped.
        plain = [int(arg.address) if hasattr(arg, "address") else arg for arg in args]

        def step(counts: Counts) -> list[Launch]:
            n = counts.rows(over)
            values = tuple(arg.of(n) if isinstance(arg, N) else arg for arg in plain)
            return [Launch(kernel, *shape(n), values)]

        self._add(step, *written)

    def _buffer(self, rows: Rows, width: int, row_bytes: int | None = None) -> CudaBuffer:
        limits = (self._limits.tokens, self._limits.outputs, self._limits.tokens * self._pairs_a_token)
        return CudaBuffer(self._memory, rows, width, row_bytes or 4 * width, limits[rows])

    def _scratch(self, nbytes: int) -> int:
        """Memory for one step alone: the next may use it again. 0 for none."""
        if not nbytes:
            return 0
        memory = self._memory.take(nbytes)
        self._memory.give(memory)
        return memory.address

    def _input(self, name: str) -> int:
        """Where a part of the inputs lies."""
        return self._inputs.address + 4 * self._offsets[name]

    def finish(self) -> CudaProgram:
        """The program of all that was recorded since the one before."""
        new = merged(self._steps[self._begun :])
        self._begun = len(self._steps)
        keep = [self._keep, self._memory.all]
        return CudaProgram(self._driver, new, lambda: self.counts, keep)

    def place(self, x: CudaBuffer) -> CudaPlace:
        """Where a buffer's rows lie."""
        return CudaPlace(x.address, x.width)

    def mailbox(self, width: int, kind: str = "f32") -> CudaPlace:
        """Rows of tokens that no operation touches."""
        size = DTYPES[kind].itemsize * width * self._limits.tokens
        return CudaPlace(self._memory.new(size).address, width, kind)

    def feed(self, write: Callable[[Inputs], None]) -> None:
        """Enqueue the copy of inputs, which are written now: the host has to know the counts."""
        self._check()
        inputs = self._feed.next()
        inputs.counts[:], inputs.top = 0, None
        write(inputs)
        self._feed.send(self._inputs.address)
        n, outputs, pairs = inputs.counts.tolist()
        longest = max(inputs.positions[:n].tolist(), default=0) + 1
        sequences = len(set(inputs.sequences[:n].tolist()))
        self.counts = Counts(n, outputs, pairs, sequences, bucket(longest), inputs.top)

    # ---------------------------------------------------------------- rows in and out

    def input(self, width: int) -> CudaBuffer:
        """Rows of tokens that are written between programs."""
        return self._buffer(Rows.TOKENS, width)

    def embed(self, table: CudaWeight) -> CudaBuffer:
        """The table's rows of the input tokens."""
        y, k = self._buffer(Rows.TOKENS, table.columns), table.columns
        self._keep.append(table.memory)
        self._record(
            "dequantize.cu", "embed", Rows.TOKENS, lambda n: matvec.embed_shape(k, n),
            [self._input("tokens"), table.address, y, np.int32(k), N()],
            y, OUTPUT="f32", **format_defines(table.format),
        )  # fmt: skip
        return y

    def pick(self, x: CudaBuffer) -> CudaBuffer:
        """The rows of the tokens whose logits are wanted."""
        return self._picked(x, Rows.OUTPUTS, self._input("outputs"))

    def spread(self, x: CudaBuffer, routing: _Routing) -> CudaBuffer:
        """Each token's row, once for each of its experts, sorted by expert."""
        return self._picked(x, Rows.PAIRS, routing.tokens.address)

    def _picked(self, x: CudaBuffer, rows: Rows, which: int) -> CudaBuffer:
        y, width = self._buffer(rows, x.width), x.width
        self._record(
            "rows.cu", "pick", rows, lambda n: grids.rows(n, width), [x, which, y, N(), np.int32(width)], y
        )
        return y

    def top_k(self, logits: CudaBuffer, first: int) -> CudaPlace:
        """The best logits of each row, in runs that want no more."""
        found, width = self._buffer(Rows.OUTPUTS, top_k.WORDS), logits.width
        scratch = self._scratch(self._limits.outputs * top_k.scratch_bytes(width))
        self._add(top_k.BestLogits(self._driver, logits.address, width, first, found.address, scratch), found)
        return self.place(found)

    # ---------------------------------------------------------------- products

    def linear(
        self, x: CudaBuffer, w: CudaWeight, scale: float = 1.0, bias: CudaMemory | None = None
    ) -> CudaBuffer:
        """x . w^T * scale + bias."""
        y = self._buffer(x.rows, w.rows)
        self._keep += [w.memory, bias]
        least = self._gemm_from.of(w.format)
        most = min(x.limit, least - 1) if least else x.limit  # rows that our own kernels multiply
        columns = self._columns(x, w, most)  # before the scratch, which must not be the same memory
        by_gemm = self._by_gemm(x, w, least) if most < x.limit else None
        scratch = self._scratch(scratch_bytes(w, most, self._driver.multiprocessors))
        step = Linear(self._driver, x.rows, columns, w, y.address, scale, address_of(bias), scratch, by_gemm)
        self._add(step, y)
        return y

    def _by_gemm(self, x: CudaBuffer, w: CudaWeight, least: int) -> ByGemm:
        """What cuBLAS needs."""
        if x.halves is None:
            x.halves = self._buffer(x.rows, x.width, gemm.halves_bytes(x.width))
            there = x.address, x.width, x.halves.address
            self._add(ToHalves(self._driver, x.rows, *there, self._gemm_from.least))
        piece = self._gemm_from.piece
        return ByGemm(least, x.halves.address, self._scratch(gemm.scratch_bytes(w, piece)), piece)

    def experts(
        self, x: CudaBuffer, w: CudaWeight, routing: _Routing, scales: CudaMemory | None = None
    ) -> CudaBuffer:
        """Each pair's row times its expert's matrix."""
        y = self._buffer(Rows.PAIRS, w.rows)
        self._keep += [w.memory, scales]
        columns, starts = self._columns(x, w, x.limit), routing.starts.address
        self._add(Experts(self._driver, columns, w, y.address, starts, address_of(scales)), y)
        return y

    def _columns(self, x: CudaBuffer, w: CudaWeight, most: int) -> int:
        """Where x is as products of up to so many rows want it: its floats, or quantized columns."""
        if not quantized(w):
            return x.address
        if x.quantized is None:
            x.quantized = self._quantized(x)
        if isinstance(step := x.quantized.step, Quantize):
            step.most = max(step.most, most)
        return x.quantized.address

    def _quantized(self, x: CudaBuffer) -> CudaBuffer:
        columns, k = self._buffer(x.rows, x.width, column_bytes(x.width)), x.width
        quantize, last = Quantize(self._driver, x.rows, x.address, k, columns.address), self._last(x)
        if isinstance(last, Norm | Attend) and last.quantizes:
            self._steps[-1] = last.with_columns(quantize)
            x.used, columns.step = (), quantize
        else:
            self._add(quantize, columns)
        return columns

    # ---------------------------------------------------------------- element by element

    def norm(self, x: CudaBuffer, weight: CudaMemory, eps: float, groups: int = 1) -> CudaBuffer:
        """RMS norm of each of `groups` equal parts of a row, times weight."""
        y = self._buffer(x.rows, x.width)
        self._keep.append(weight)
        step = Norm(self._driver, x.rows, x.address, weight.address, y.address, x.width, groups, eps)
        self._add(step, y)
        y.used = (x,)
        return y

    def rope_table(
        self, frequencies: CudaMemory, dims: int, magnitude: float, slope: float, period: float
    ) -> _RopeTable:
        """The cosines and sines of the input positions."""
        angles, positions = self._buffer(Rows.TOKENS, dims), self._input("positions")
        numbers = np.float32(magnitude), np.float32(slope), np.float32(period)
        self._record(
            "rope.cu", "rope_table", Rows.TOKENS, lambda n: grids.rope_table(n, dims),
            [positions, frequencies, angles, N(), np.int32(dims), *numbers],
            angles,
        )  # fmt: skip
        return _RopeTable(angles, dims)

    def rope(self, x: CudaBuffer, table: _RopeTable, heads: int, neighbours: bool) -> None:
        """Rotate every head of x in place."""
        of_x = Heads(x.address, table.angles.address, heads)
        step = Rope(self._driver, of_x, x.width // heads, table.dims, neighbours)
        if both := Rope.of(self._recent(), step):
            del self._steps[-1]
        self._add(both or step, x)

    def swiglu(self, gate: CudaBuffer, up: CudaBuffer) -> CudaBuffer:
        """silu(gate) * up, in gate's memory."""
        if fused := SwiGLU.of(self._last(gate, 2), self._last(up)):
            del self._steps[-2:]
            self._add(fused, gate)
            return gate
        width = gate.width
        self._record(
            "activation.cu", "activate_gated", gate.rows, lambda n: grids.elements(n * width),
            [gate, up, gate, N(width, np.int64)],
            gate, ACTIVATION="silu",
        )  # fmt: skip
        return gate

    def add(self, x: CudaBuffer, y: CudaBuffer) -> None:
        """y += x, which is used up."""
        if isinstance(product := self._last(x), Linear):
            del self._steps[-1]
            self._add(product.onto(y.address), y)
            return
        width = y.width
        self._record(
            "rows.cu", "add", y.rows, lambda n: grids.elements(n * width), [x, y, N(width, np.int64)], y
        )

    # ---------------------------------------------------------------- attention

    def store(self, x: CudaBuffer, cells: Cells) -> None:
        """Keep keys or values in the input slots."""
        self._keep.append(cells.memory)
        step = Store(self._driver, x.address, self._input("slots"), cells)
        if fused := RopeStore.of(self._recent(2), self._recent(), step):
            del self._steps[-2:]
        self._add(fused or step)

    def attend(self, q: CudaBuffer, keys: Cells, values: Cells, heads: int, scale: float) -> CudaBuffer:
        """Attention of each token over its sequence, up to its own position."""
        y = self._buffer(q.rows, heads * values.dim)
        shape = Shape(heads, keys.heads, keys.dim, values.dim, keys.kind, values.kind)
        self._keep += [keys.memory, values.memory]
        scratch = CudaBuffer(self._memory, q.rows, 0, self._attention.scratch_bytes(shape), 1)
        addresses = q.address, y.address
        self._add(self._attention.attend(shape, *addresses, keys, values, scale, scratch.address), y)
        y.used = q, scratch
        return y

    # ---------------------------------------------------------------- experts

    def route(self, logits: CudaBuffer, used: int, normalize: bool) -> _Routing:
        """Each token's `used` most probable experts."""
        self._pairs_a_token, experts, rows = used, logits.width, logits.rows
        weights, chosen, places = (self._buffer(rows, used) for _ in range(3))
        tokens = self._buffer(Rows.PAIRS, 1)
        starts = CudaBuffer(self._memory, rows, experts + 1, 4 * (experts + 1), 1)
        self._record(
            "moe.cu", "route", rows, grids.route,
            [logits, chosen, weights, N(), np.int32(experts), np.int32(used), np.int32(normalize)],
            chosen, weights, PER_LANE=grids.per_lane(experts),
        )  # fmt: skip
        self._record(
            "moe.cu", "sort", rows, lambda n: grids.sort(experts),
            [chosen, starts, tokens, places, N(), np.int32(experts), np.int32(used)],
            starts, tokens, places, PER_LANE=grids.per_lane(experts),
        )  # fmt: skip
        return _Routing(used, experts, weights, starts, tokens, places)

    def combine(self, x: CudaBuffer, routing: _Routing) -> CudaBuffer:
        """Each token's weighted sum of its pairs."""
        y, width, used = self._buffer(Rows.TOKENS, x.width), x.width, routing.used
        self._record(
            "rows.cu", "combine", Rows.TOKENS, lambda n: grids.rows(n, width),
            [x, routing.weights, routing.places, y, N(), np.int32(width), np.int32(used)],
            y,
        )  # fmt: skip
        return y
