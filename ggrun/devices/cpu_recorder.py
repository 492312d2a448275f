"""Records operations for the CPU: a table of kernels with their arguments, and barriers where they are
needed.

All threads walk the table; each does its share of every operation. An operation must wait for all threads
only when it touches memory that an operation since the last barrier wrote, or writes memory that one read.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from weakref import finalize

import numpy as np
from numpy.typing import NDArray

from ggrun.devices.base import Cells, Inputs, Limits, Rows
from ggrun.devices.cpu_memory import LINE, CpuPlace, CpuTopK, zeros
from ggrun.devices.streams import INLINE, Work
from ggrun.devices.threads import ThreadPool, physical_cores
from ggrun.devices.wire import DTYPES
from ggrun.kernels import load_cpu
from ggrun.kernels.together import compile_together


class _Pool:
    """Memory of dropped buffers, by size, to be used again by later operations."""

    def __init__(self, allocate: Callable[[int], NDArray[np.uint8]]) -> None:
        self._allocate = allocate
        self._free: dict[int, list[NDArray[np.uint8]]] = defaultdict(list)
        self.all: list[NDArray[np.uint8]] = []

    def take(self, nbytes: int) -> NDArray[np.uint8]:
        nbytes = -(-nbytes // LINE) * LINE
        return self._free[nbytes].pop() if self._free[nbytes] else self.new(nbytes)

    def new(self, nbytes: int) -> NDArray[np.uint8]:
        self.all.append(self._allocate(nbytes))
        return self.all[-1]

    def give(self, memory: NDArray[np.uint8]) -> None:
        self._free[len(memory)].append(memory)


class CpuBuffer:
    """Rows of float32 (or of quantized columns), whose memory goes back when it is dropped."""

    def __init__(self, pool: _Pool, rows: Rows, width: int, row_bytes: int, limit: int) -> None:
        self.rows, self.width, self.row_bytes = rows, width, row_bytes
        self.memory = pool.take(row_bytes * limit)
        self.address = self.memory.ctypes.data
        self.quantized: CpuBuffer | None = None
        finalize(self, pool.give, self.memory).atexit = False


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


@dataclass(frozen=True)
class _Operation:
    """An operation that was recorded; `kernels` are those among its arguments."""

    kernel: Any
    arguments: NDArray[Any]
    kernels: dict[str, Any]
    waits: bool

    def row(self) -> tuple[int, int, bool]:
        """What threads walk: see kernels/cpu/runtime.py."""
        for name, kernel in self.kernels.items():
            self.arguments[name] = kernel.address
        return self.kernel.address, int(self.arguments.ctypes.data), self.waits


class CpuProgram:
    """A table of operations, and all memory that it points to."""

    def __init__(
        self, pool: ThreadPool, enqueue: Callable[[Work], None], table: NDArray[np.int64], keep: list[Any]
    ) -> None:
        self._pool, self._enqueue, self._table, self._keep = pool, enqueue, table, keep

    def run(self) -> None:
        """Enqueue a walk through the table."""
        self._enqueue(self._walk)

    def _walk(self) -> None:
        self._pool.run(self._table)


class CpuRecorder:
    """See base.Recorder for what the operations mean. `enqueue` is for what runs, `allocate` for buffers."""

    def __init__(
        self,
        pool: ThreadPool,
        limits: Limits,
        enqueue: Callable[[Work], None] = INLINE.enqueue,
        allocate: Callable[[int], NDArray[np.uint8]] = zeros,
    ) -> None:
        self.inputs = Inputs(limits)
        self._threads, self._limits, self._enqueue = pool, limits, enqueue
        self._memory = _Pool(allocate)
        self._begun = 0  # operations before this one are in programs
        self._kernel = load_cpu("runtime").Kernel
        self._operations: list[_Operation] = []
        self._keep: list[Any] = [self.inputs]
        self._read: set[int] = set()
        self._written: set[int] = set()
        self._pairs_a_token = 0

    # ---------------------------------------------------------------- recording

    def _record(
        self,
        operation: str,
        over: Rows,
        reads: Sequence[_Region],
        writes: Sequence[_Region],
        **values: Any,
    ) -> None:
        """Note an operation, "module.name", over all rows of a kind.

        Values are numbers, or what has an address: arrays, buffers, weights, kernels. These are compiled at
        the end, when all are known.
        """
        module, _, name = operation.partition(".")
        kernel, struct = getattr(load_cpu(module), name), getattr(load_cpu(module), name.upper())
        if "n" in struct.fields:
            values["n"] = self.inputs.counts[over:]
        kernels = {name: value for name, value in values.items() if isinstance(value, self._kernel)}
        packed = struct.pack(**{name: self._plain(value) for name, value in values.items()})
        self._operations.append(_Operation(kernel, packed, kernels, self._waits(reads, writes)))

    def _waits(self, reads: Sequence[_Region], writes: Sequence[_Region]) -> bool:
        """Whether an operation must wait for those since the last barrier; it is one of them from now on."""
        read, written = {region.address for region in reads}, {region.address for region in writes}
        waits = bool(read & self._written or written & (self._written | self._read))
        if waits:
            self._read, self._written = set(), set()
        self._read |= read
        self._written |= written
        for region in writes:
            if isinstance(region, CpuBuffer):
                region.quantized = None
        return waits

    def _plain(self, value: Any) -> float:
        """The number that a kernel is given; what it is the address of is kept alive."""
        if isinstance(value, self._kernel):
            return 0
        if isinstance(value, np.ndarray):
            self._keep.append(value)
            return int(value.ctypes.data)
        if hasattr(value, "data"):  # a weight, which keeps the file mapped and its bytes counted
            self._keep.append(value)
        plain: float = getattr(value, "address", value)
        return plain

    def _buffer(self, rows: Rows, width: int, row_bytes: int | None = None) -> CpuBuffer:
        limits = (self._limits.tokens, self._limits.outputs, self._limits.tokens * self._pairs_a_token)
        room = load_cpu("columns").ROOM  # products take several columns at a time
        return CpuBuffer(self._memory, rows, width, row_bytes or 4 * width, limits[rows] + room)

    def finish(self) -> CpuProgram:
        """The program of all that was recorded since the one before."""
        new = self._operations[self._begun :]
        self._begun = len(self._operations)
        self._read, self._written = set(), set()  # a program begins when the one before has ended
        kernels = [kernel for o in new for kernel in (o.kernel, *o.kernels.values())]
        compile_together(kernels, physical_cores())
        table = [o.row() for o in new]
        keep = [self._keep, self._memory.all, [o.arguments for o in new]]
        return CpuProgram(self._threads, self._enqueue, np.array(table, np.int64).reshape(-1, 3), keep)

    def place(self, x: CpuBuffer) -> CpuPlace:
        """Where a buffer's rows lie."""
        return CpuPlace(x.width, x.memory)

    def mailbox(self, width: int, kind: str = "f32") -> CpuPlace:
        """Rows of tokens that no operation touches."""
        size = DTYPES[kind].itemsize * width * self._limits.tokens
        return CpuPlace(width, self._memory.new(size), kind)

    def feed(self, write: Callable[[Inputs], None]) -> None:
        """Enqueue the writing of inputs."""
        self._enqueue(lambda: write(self.inputs))

    # ---------------------------------------------------------------- rows in and out

    def input(self, width: int) -> CpuBuffer:
        """Rows of tokens that the host writes before each run."""
        return self._buffer(Rows.TOKENS, width)

    def embed(self, table: Any) -> CpuBuffer:
        """The table's rows of the input tokens."""
        y = self._buffer(Rows.TOKENS, table.columns)
        self._record(
            "linear.embed", y.rows, [], [y],
            tokens=self.inputs.tokens, w=table, w_stride=table.row_stride, k=table.columns,
            dequantize=table.kernels.dequantize, y=y,
        )  # fmt: skip
        return y

    def pick(self, x: CpuBuffer) -> CpuBuffer:
        """The rows of the tokens whose logits are wanted."""
        return self._picked(x, Rows.OUTPUTS, self.inputs.outputs, [])

    def _picked(self, x: CpuBuffer, rows: Rows, which: Any, reads: list[CpuBuffer]) -> CpuBuffer:
        y = self._buffer(rows, x.width)
        self._record("elementwise.pick", rows, [x, *reads], [y], rows=which, x=x, y=y, width=x.width)
        return y

    def top_k(self, logits: CpuBuffer, first: int) -> CpuTopK:
        """Nothing yet: numpy finds them in one look at the logits, sooner than these could be copied."""
        return CpuTopK(self.place(logits), first)

    # ---------------------------------------------------------------- products

    def _columns_for(self, x: CpuBuffer, w: Any) -> CpuBuffer:
        """x in the form that the weight's format multiplies with."""
        if w.kernels.COLUMNS == "f32":
            return x
        if x.quantized is None:
            columns = self._buffer(x.rows, x.width, load_cpu("columns").column_bytes(x.width))
            self._record("columns.quantize", x.rows, [x], [columns], x=x, y=columns, k=x.width)
            x.quantized = columns
        return x.quantized

    def _layout(self, x: CpuBuffer, w: Any) -> dict[str, int]:
        """How the columns of x lie that w is multiplied with; see kernels/cpu/columns.py."""
        if w.kernels.COLUMNS == "f32":
            return {"x_stride": x.row_bytes, "x_block": 4 * load_cpu("columns").VALUES}
        return {"x_stride": load_cpu("columns").SIZE, "x_block": 0}

    def linear(self, x: CpuBuffer, w: Any, scale: float = 1.0, bias: Any = None) -> CpuBuffer:
        """x . w^T * scale + bias."""
        columns, y = self._columns_for(x, w), self._buffer(x.rows, w.rows)
        self._record(
            "linear.linear", x.rows, [columns], [y],
            x=columns, **self._layout(x, w), k=w.columns, w=w, w_stride=w.row_stride, rows=w.rows,
            matmul=w.kernels.matmul, y=y, y_stride=y.row_bytes, scale=scale, bias=0 if bias is None else bias,
        )  # fmt: skip
        return y

    def experts(self, x: CpuBuffer, w: Any, routing: _Routing, scales: Any = None) -> CpuBuffer:
        """Each pair's row times its expert's matrix."""
        columns, y = self._columns_for(x, w), self._buffer(Rows.PAIRS, w.rows)
        self._record(
            "linear.experts", Rows.PAIRS, [columns, routing.starts], [y],
            starts=routing.starts, experts=w.experts, x=columns, **self._layout(x, w), k=w.columns, w=w,
            w_stride=w.row_stride, w_expert=w.expert_stride, rows=w.rows, matmul=w.kernels.matmul, y=y,
            y_stride=y.row_bytes, scales=0 if scales is None else scales,
        )  # fmt: skip
        return y

    # ---------------------------------------------------------------- element by element

    def norm(self, x: CpuBuffer, weight: Any, eps: float, groups: int = 1) -> CpuBuffer:
        """RMS norm of each of `groups` equal parts of a row, times weight."""
        y = self._buffer(x.rows, x.width)
        self._record(
            "elementwise.rms_norm", x.rows, [x], [y],
            groups=groups, x=x, y=y, width=x.width // groups, weight=weight, eps=eps,
        )  # fmt: skip
        return y

    def rope_table(
        self, frequencies: Any, dims: int, magnitude: float, slope: float, period: float
    ) -> _RopeTable:
        """The cosines and sines of the input positions."""
        angles = self._buffer(Rows.TOKENS, dims)
        self._record(
            "elementwise.rope_table", angles.rows, [], [angles],
            positions=self.inputs.positions, frequencies=frequencies, dims=dims, table=angles,
            magnitude=magnitude, slope=slope, period=period,
        )  # fmt: skip
        return _RopeTable(angles, dims)

    def rope(self, x: CpuBuffer, table: _RopeTable, heads: int, neighbours: bool) -> None:
        """Rotate every head of x in place."""
        self._record(
            "elementwise.rope", x.rows, [x, table.angles], [x],
            x=x, heads=heads, head_dim=x.width // heads, dims=table.dims, table=table.angles,
            neighbours=neighbours,
        )  # fmt: skip

    def swiglu(self, gate: CpuBuffer, up: CpuBuffer) -> CpuBuffer:
        """silu(gate) * up, in gate's memory."""
        self._record(
            "elementwise.swiglu", gate.rows, [gate, up], [gate], gate=gate, up=up, y=gate, width=gate.width
        )
        return gate

    def add(self, x: CpuBuffer, y: CpuBuffer) -> None:
        """y += x."""
        self._record("elementwise.add", y.rows, [x, y], [y], x=x, y=y, width=y.width)

    # ---------------------------------------------------------------- attention

    def store(self, x: CpuBuffer, cells: Cells) -> None:
        """Keep keys or values in the input slots."""
        kernels = load_cpu(f"cache.{cells.kind}")
        self._record(
            "attention.store_cells", x.rows, [x], [_Cells(cells)],
            x=x, heads=cells.heads, head_dim=cells.dim, slots=self.inputs.slots, page=cells.page,
            cells=cells.memory, row_bytes=kernels.row_bytes(cells.dim), write=kernels.write,
        )  # fmt: skip

    def attend(self, q: CpuBuffer, keys: Cells, values: Cells, heads: int, scale: float) -> CpuBuffer:
        """Attention of each token over its sequence, up to its own position."""
        y, padded = self._buffer(q.rows, heads * values.dim), load_cpu("cache").padded
        of_keys, of_values = load_cpu(f"cache.{keys.kind}"), load_cpu(f"cache.{values.kind}")
        self._record(
            "attention.attend", q.rows, [q, _Cells(keys), _Cells(values)], [y],
            q=q, y=y, scale=scale, heads=heads, kv_heads=keys.heads,
            head_dim=keys.dim, padded_dim=padded(keys.dim),
            value_dim=values.dim, padded_value=padded(values.dim),
            positions=self.inputs.positions, sequences=self.inputs.sequences, tables=self.inputs.tables,
            table_stride=self.inputs.tables.shape[1], page=keys.page,
            keys=keys.memory, key_bytes=of_keys.row_bytes(keys.dim), key_scores=of_keys.scores,
            key_unpack=of_keys.unpack,
            values=values.memory, value_bytes=of_values.row_bytes(values.dim), value_mix=of_values.mix,
            value_unpack=of_values.unpack,
        )  # fmt: skip
        return y

    # ---------------------------------------------------------------- experts

    def route(self, logits: CpuBuffer, used: int, normalize: bool) -> _Routing:
        """Each token's `used` most probable experts; uses up the logits."""
        self._pairs_a_token, experts, rows = used, logits.width, logits.rows
        weights, chosen, places = (self._buffer(rows, used) for _ in range(3))
        tokens = self._buffer(Rows.PAIRS, 1)
        starts = CpuBuffer(self._memory, rows, experts + 1, 4 * (experts + 1), 1)
        self._record(
            "moe.route", rows, [logits], [logits, weights, chosen],
            logits=logits, experts=experts, used=used, normalize=normalize, chosen=chosen, weights=weights,
        )  # fmt: skip
        self._record(
            "moe.sort", rows, [chosen], [starts, tokens, places],
            experts=experts, used=used, chosen=chosen, starts=starts, tokens=tokens, places=places,
        )  # fmt: skip
        return _Routing(used, experts, weights, starts, tokens, places)

    def spread(self, x: CpuBuffer, routing: _Routing) -> CpuBuffer:
        """Each token's row, once for each of its experts, sorted by expert."""
        return self._picked(x, Rows.PAIRS, routing.tokens, [routing.tokens])

    def combine(self, x: CpuBuffer, routing: _Routing) -> CpuBuffer:
        """Each token's weighted sum of its pairs."""
        y = self._buffer(Rows.TOKENS, x.width)
        self._record(
            "moe.combine", y.rows, [x, routing.weights, routing.places], [y],
            used=routing.used, weights=routing.weights, places=routing.places, x=x, y=y, width=x.width,
        )  # fmt: skip
        return y
