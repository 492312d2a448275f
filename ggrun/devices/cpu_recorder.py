"""Records operations for the CPU: a table of kernels with their arguments, and barriers where they are
needed.

All threads walk the table; each does its share of every operation. An operation must wait for all threads
only when it touches memory that an operation since the last barrier wrote, or writes memory that one read.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ggrun.devices.base import Cells, Inputs, Limits, Rows
from ggrun.devices.threads import ThreadPool
from ggrun.kernels import load_cpu


class _Pool:
    """Memory of dropped buffers, by size, to be used again by later operations."""

    def __init__(self) -> None:
        self._free: dict[int, list[NDArray[np.uint8]]] = defaultdict(list)
        self.all: list[NDArray[np.uint8]] = []

    def take(self, nbytes: int) -> NDArray[np.uint8]:
        nbytes = -(-nbytes // 64) * 64
        if self._free[nbytes]:
            return self._free[nbytes].pop()
        memory = np.zeros(nbytes + 64, np.uint8)
        self.all.append(memory)
        return memory[-memory.ctypes.data % 64 :][:nbytes]

    def give(self, memory: NDArray[np.uint8]) -> None:
        self._free[len(memory)].append(memory)


class CpuBuffer:
    """Rows of float32 (or of quantized columns), whose memory goes back when it is dropped."""

    def __init__(self, pool: _Pool, rows: Rows, width: int, row_bytes: int, limit: int) -> None:
        self.rows, self.width, self.row_bytes = rows, width, row_bytes
        self._pool, self._memory = pool, pool.take(row_bytes * limit)
        self.address = self._memory.ctypes.data
        self.quantized: CpuBuffer | None = None

    def __del__(self) -> None:
        self._pool.give(self._memory)

    def array(self, rows: int) -> NDArray[np.float32]:
        """The first rows, [rows, width]."""
        return self._memory[: self.row_bytes * rows].view(np.float32).reshape(rows, self.width)


@dataclass(frozen=True)
class _Routing:
    used: int
    experts: int
    weights: CpuBuffer
    starts: CpuBuffer
    tokens: CpuBuffer
    places: CpuBuffer


@dataclass(frozen=True)
class _RopeTable:
    angles: CpuBuffer
    dims: int


class _Region(Protocol):
    """Memory that operations read or write, known by where it begins."""

    address: int


class _Cells:
    """The cache of a layer, as a region."""

    def __init__(self, cells: Cells) -> None:
        self.address: int = cells.memory.ctypes.data


class CpuProgram:
    """A table of operations, and all memory that it points to."""

    def __init__(self, pool: ThreadPool, table: NDArray[np.int64], keep: list[Any]) -> None:
        self._pool, self._table, self._keep = pool, table, keep

    def run(self) -> None:
        """Walk the table."""
        self._pool.run(self._table)


class CpuRecorder:
    """See base.Recorder for what the operations mean."""

    def __init__(self, pool: ThreadPool, limits: Limits) -> None:
        self.inputs = Inputs(limits)
        self._threads, self._limits = pool, limits
        self._memory = _Pool()
        self._operations: list[tuple[Any, NDArray[Any], bool]] = []
        self._keep: list[Any] = [self.inputs]
        self._read: set[int] = set()
        self._written: set[int] = set()
        self._pairs_a_token = 0
        self._elementwise, self._linear = load_cpu("elementwise"), load_cpu("linear")
        self._attention, self._moe, self._columns = (
            load_cpu("attention"),
            load_cpu("moe"),
            load_cpu("columns"),
        )

    # ---------------------------------------------------------------- recording

    def _record(
        self, kernel: Any, struct: Any, reads: Sequence[_Region], writes: Sequence[_Region], **values: Any
    ) -> None:
        """Note an operation; arguments may be numbers, arrays or buffers (their addresses) and kernels
        (likewise)."""
        packed = struct.pack(**{name: self._plain(value) for name, value in values.items()})
        read, written = {b.address for b in reads}, {b.address for b in writes}
        waits = bool(read & self._written or written & (self._written | self._read))
        if waits:
            self._read, self._written = set(), set()
        self._read |= read
        self._written |= written
        for region in writes:
            if isinstance(region, CpuBuffer):
                region.quantized = None
        self._operations.append((kernel, packed, waits))

    def _plain(self, value: Any) -> float:
        """The number that a kernel is given. A kernel's own address compiles it."""
        if isinstance(value, np.ndarray):
            self._keep.append(value)
            return int(value.ctypes.data)
        plain: float = getattr(value, "address", value)
        return plain

    def _buffer(self, rows: Rows, width: int, row_bytes: int | None = None) -> CpuBuffer:
        limits = (self._limits.tokens, self._limits.outputs, self._limits.tokens * self._pairs_a_token)
        return CpuBuffer(self._memory, rows, width, row_bytes or 4 * width, limits[rows])

    def _count(self, rows: Rows) -> NDArray[np.int64]:
        return self.inputs.counts[rows:]

    def finish(self) -> CpuProgram:
        """The program of all that was recorded."""
        table = [(kernel.address, args.ctypes.data, waits) for kernel, args, waits in self._operations]
        arguments = [args for _, args, _ in self._operations]
        return CpuProgram(self._threads, np.array(table, np.int64), [self._keep, arguments, self._memory.all])

    # ---------------------------------------------------------------- rows in and out

    def input(self, width: int) -> CpuBuffer:
        """Rows of tokens that the host writes before each run."""
        return self._buffer(Rows.TOKENS, width)

    def embed(self, table: Any) -> CpuBuffer:
        """The table's rows of the input tokens."""
        y = self._buffer(Rows.TOKENS, table.columns)
        self._record(
            self._linear.embed, self._linear.EMBED, [], [y], n=self._count(y.rows), tokens=self.inputs.tokens,
            w=table.address, w_stride=table.row_stride, k=table.columns, dequantize=table.kernels.dequantize,
            y=y,
        )  # fmt: skip
        return y

    def pick(self, x: CpuBuffer) -> CpuBuffer:
        """The rows of the tokens whose logits are wanted."""
        return self._picked(x, Rows.OUTPUTS, self.inputs.outputs, [])

    def _picked(self, x: CpuBuffer, rows: Rows, which: Any, reads: list[CpuBuffer]) -> CpuBuffer:
        y = self._buffer(rows, x.width)
        self._record(
            self._elementwise.pick, self._elementwise.PICK, [x, *reads], [y], n=self._count(rows),
            rows=which, x=x,
            y=y, width=x.width,
        )  # fmt: skip
        return y

    # ---------------------------------------------------------------- products

    def _columns_for(self, x: CpuBuffer, w: Any) -> CpuBuffer:
        """x in the form that the weight's format multiplies with."""
        if w.kernels.COLUMNS == "f32":
            return x
        if x.quantized is None:
            columns = self._buffer(x.rows, x.width, x.width + x.width // 2)
            self._record(
                self._columns.quantize, self._columns.QUANTIZE, [x], [columns], n=self._count(x.rows), x=x,
                y=columns, k=x.width,
            )  # fmt: skip
            x.quantized = columns
        return x.quantized

    def linear(self, x: CpuBuffer, w: Any, scale: float = 1.0, bias: Any = None) -> CpuBuffer:
        """x . w^T * scale + bias."""
        columns, y = self._columns_for(x, w), self._buffer(x.rows, w.rows)
        self._record(
            self._linear.linear, self._linear.LINEAR, [columns], [y], n=self._count(x.rows), x=columns,
            x_stride=columns.row_bytes, k=w.columns, w=w.address, w_stride=w.row_stride, rows=w.rows,
            matmul=w.kernels.matmul, y=y, y_stride=y.row_bytes, scale=scale, bias=0 if bias is None else bias,
        )  # fmt: skip
        return y

    def experts(self, x: CpuBuffer, w: Any, routing: _Routing, scales: Any = None) -> CpuBuffer:
        """Each pair's row times its expert's matrix."""
        columns, y = self._columns_for(x, w), self._buffer(Rows.PAIRS, w.rows)
        self._record(
            self._linear.experts, self._linear.EXPERTS, [columns, routing.starts], [y], starts=routing.starts,
            experts=w.experts, x=columns, x_stride=columns.row_bytes, k=w.columns, w=w.address,
            w_stride=w.row_stride, w_expert=w.expert_stride, rows=w.rows, matmul=w.kernels.matmul, y=y,
            y_stride=y.row_bytes, scales=0 if scales is None else scales, biases=0,
        )  # fmt: skip
        return y

    # ---------------------------------------------------------------- element by element

    def norm(self, x: CpuBuffer, weight: Any, eps: float, groups: int = 1) -> CpuBuffer:
        """RMS norm of each of `groups` equal parts of a row, times weight."""
        y = self._buffer(x.rows, x.width)
        self._record(
            self._elementwise.rms_norm, self._elementwise.RMS_NORM, [x], [y], n=self._count(x.rows),
            groups=groups,
            x=x, y=y, width=x.width // groups, weight=weight, eps=eps,
        )  # fmt: skip
        return y

    def rope_table(
        self, frequencies: Any, dims: int, magnitude: float, slope: float, period: float
    ) -> _RopeTable:
        """The cosines and sines of the input positions."""
        angles = self._buffer(Rows.TOKENS, dims)
        self._record(
            self._elementwise.rope_table, self._elementwise.ROPE_TABLE, [], [angles],
            n=self._count(angles.rows),
            positions=self.inputs.positions, frequencies=frequencies, dims=dims, table=angles,
            magnitude=magnitude,
            slope=slope, period=period,
        )  # fmt: skip
        return _RopeTable(angles, dims)

    def rope(self, x: CpuBuffer, table: _RopeTable, heads: int, neighbours: bool) -> None:
        """Rotate every head of x in place."""
        self._record(
            self._elementwise.rope, self._elementwise.ROPE, [x, table.angles], [x], n=self._count(x.rows),
            x=x,
            heads=heads, head_dim=x.width // heads, dims=table.dims, table=table.angles,
            neighbours=neighbours,
        )  # fmt: skip

    def swiglu(self, gate: CpuBuffer, up: CpuBuffer) -> CpuBuffer:
        """silu(gate) * up, in gate's memory."""
        self._record(
            self._elementwise.swiglu, self._elementwise.SWIGLU, [gate, up], [gate], n=self._count(gate.rows),
            gate=gate, up=up, y=gate, width=gate.width,
        )  # fmt: skip
        return gate

    def add(self, x: CpuBuffer, y: CpuBuffer) -> None:
        """y += x."""
        self._record(
            self._elementwise.add,
            self._elementwise.ADD,
            [x, y],
            [y],
            n=self._count(y.rows),
            x=x,
            y=y,
            width=y.width,
        )

    # ---------------------------------------------------------------- attention

    def store(self, x: CpuBuffer, cells: Cells) -> None:
        """Keep keys or values in the input slots."""
        kernels = load_cpu(f"cache.{cells.kind}")
        self._record(
            self._attention.store_cells, self._attention.STORE, [x], [_Cells(cells)], n=self._count(x.rows),
            x=x,
            heads=cells.heads, head_dim=cells.dim, slots=self.inputs.slots, page=cells.page,
            cells=cells.memory,
            row_bytes=kernels.row_bytes(cells.dim), write=kernels.write,
        )  # fmt: skip

    def attend(self, q: CpuBuffer, keys: Cells, values: Cells, heads: int, scale: float) -> CpuBuffer:
        """Attention of each token over its sequence, up to its own position."""
        y = self._buffer(q.rows, heads * values.dim)
        of_keys, of_values = load_cpu(f"cache.{keys.kind}"), load_cpu(f"cache.{values.kind}")
        self._record(
            self._attention.attend, self._attention.ATTEND, [q, _Cells(keys), _Cells(values)], [y],
            n=self._count(q.rows), q=q, y=y, heads=heads, kv_heads=keys.heads, head_dim=keys.dim,
            value_dim=values.dim, padded_dim=load_cpu("cache").padded(keys.dim),
            padded_value=load_cpu("cache").padded(values.dim), positions=self.inputs.positions,
            sequences=self.inputs.sequences, tables=self.inputs.tables,
            table_stride=self.inputs.tables.shape[1],
            page=keys.page, keys=keys.memory, key_bytes=of_keys.row_bytes(keys.dim),
            key_scores=of_keys.scores,
            values=values.memory, value_bytes=of_values.row_bytes(values.dim), value_mix=of_values.mix,
            key_unpack=of_keys.unpack, value_unpack=of_values.unpack,
            scale=scale,
        )  # fmt: skip
        return y

    # ---------------------------------------------------------------- experts

    def route(self, logits: CpuBuffer, used: int, normalize: bool) -> _Routing:
        """Each token's `used` most probable experts; uses up the logits."""
        self._pairs_a_token = used
        experts = logits.width
        weights, chosen, places = (self._buffer(Rows.TOKENS, used) for _ in range(3))
        tokens = self._buffer(Rows.PAIRS, 1)
        starts = CpuBuffer(self._memory, Rows.TOKENS, experts + 1, 4 * (experts + 1), 1)
        moe, n = self._moe, self._count(Rows.TOKENS)
        self._record(
            moe.route, moe.ROUTE, [logits], [logits, weights, chosen], n=n, logits=logits, experts=experts,
            used=used,
            normalize=normalize, chosen=chosen, weights=weights,
        )  # fmt: skip
        self._record(
            moe.sort, moe.SORT, [chosen], [starts, tokens, places], n=n, experts=experts, used=used,
            chosen=chosen,
            starts=starts, tokens=tokens, places=places,
        )  # fmt: skip
        return _Routing(used, experts, weights, starts, tokens, places)

    def spread(self, x: CpuBuffer, routing: _Routing) -> CpuBuffer:
        """Each token's row, once for each of its experts, sorted by expert."""
        return self._picked(x, Rows.PAIRS, routing.tokens, [routing.tokens])

    def combine(self, x: CpuBuffer, routing: _Routing) -> CpuBuffer:
        """Each token's weighted sum of its pairs."""
        y = self._buffer(Rows.TOKENS, x.width)
        self._record(
            self._moe.combine, self._moe.COMBINE, [x, routing.weights, routing.places], [y],
            n=self._count(Rows.TOKENS), used=routing.used, weights=routing.weights, places=routing.places,
            x=x, y=y,
            width=x.width,
        )  # fmt: skip
        return y
