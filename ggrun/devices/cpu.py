"""The CPU: weights stay in the mapped file, programs are tables that threads walk together."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggrun.devices.base import Device, Limits, Place
from ggrun.devices.best import Best, TopK
from ggrun.devices.budget import Budget
from ggrun.devices.cpu_memory import CpuPlace, CpuTopK, zeros
from ggrun.devices.cpu_recorder import CpuRecorder
from ggrun.devices.host_memory import host_memory
from ggrun.devices.streams import INLINE, Stream
from ggrun.devices.threads import ThreadPool, physical_cores
from ggrun.devices.wire import narrowed, widened
from ggrun.errors import GgrunError
from ggrun.gguf import Tensor
from ggrun.kernels import load_cpu

_PROBED = 1 << 30  # bytes that the bandwidth is measured on
_PASSES = 7


@dataclass(frozen=True, eq=False)
class CpuWeight:
    """A block of a tensor where it lies in the mapped file; strides in bytes."""

    kernels: Any  # the module of the format
    address: int
    rows: int
    columns: int
    row_stride: int
    experts: int
    expert_stride: int
    data: NDArray[np.uint8] = field(repr=False)  # keeps the file mapped

    def nbytes(self, tensor: Tensor) -> int:
        """The bytes of the block alone."""
        return self.experts * self.rows * tensor.format.nbytes(self.columns)

    def cut(self, rows: tuple[int, int]) -> "CpuWeight":
        """The block's rows from rows[0] to rows[1]."""
        begin, end = rows
        return replace(self, address=self.address + begin * self.row_stride, rows=end - begin)


class Cpu:
    """All cores of this machine, or `threads` of them.

    limit    bytes that may be taken; weights count, although they stay in the mapped file
    stream   a Threaded one lets the caller go on while the cores work
    """

    def __init__(
        self,
        threads: int | None = None,
        name: str = "cpu",
        limit: int | None = None,
        stream: Stream | None = None,
    ) -> None:
        self.name, self._budget = name, Budget(name, limit)
        self.pool = ThreadPool(threads or physical_cores())
        self.stream: Stream = stream or INLINE

    def available(self) -> int:
        """What the system could give without swapping, or the limit leaves."""
        free = host_memory().available
        return free if self._budget.free is None else min(free, self._budget.free)

    def bandwidth(self) -> float:
        """Bytes a second that all threads together read from memory: the best of several passes."""
        probe = load_cpu("probe")
        # No cache holds a GiB, or what a machine has when it cannot spare four. A limit is for models.
        lines = min(_PROBED, host_memory().available // 4) // probe.LINE
        data, sums = zeros(lines * probe.LINE), np.zeros(self.pool.threads, np.int32)
        args = probe.PROBE.pack(data=data.ctypes.data, lines=lines, sums=sums.ctypes.data)

        def seconds(operation: Any) -> float:
            table = np.array([[operation.address, args.ctypes.data, 0]], np.int64)
            start = time.perf_counter()
            self.pool.run(table)
            return time.perf_counter() - start

        # A page becomes memory, of the thread's own node, when it is first written to.
        seconds(probe.write_lines)
        return data.nbytes / min(seconds(probe.read_lines) for _ in range(_PASSES))

    def recorder(self, limits: Limits) -> CpuRecorder:
        """A new recorder."""
        return CpuRecorder(self.pool, limits, self.stream.enqueue, self.working_memory)

    def working_memory(self, nbytes: int) -> NDArray[np.uint8]:
        """Memory for buffers."""
        return self.zeros(nbytes, "working memory")

    def zeros(self, nbytes: int, what: str, on_host: bool = False) -> NDArray[np.uint8]:
        """Zeroed memory, aligned to cache lines; the host's is this one, but of no device's limit."""
        memory = zeros(nbytes)
        if not on_host:
            self._budget.take(memory.base, nbytes, what)
        return memory

    def vector(self, values: NDArray[np.float32], what: str = "a vector") -> NDArray[np.float32]:
        """The vector itself, contiguous."""
        return np.ascontiguousarray(values, np.float32)

    def weight(self, tensor: Tensor, rows: tuple[int, int], columns: tuple[int, int]) -> CpuWeight:
        """A view: nothing is copied."""
        weight = view(tensor, rows, columns)
        self._budget.take(weight, weight.nbytes(tensor), f"the weights {tensor.name}")
        return weight

    def slot(self, nbytes: int) -> None:
        """Weights are read where they lie."""

    def rows(self, weight: CpuWeight, rows: tuple[int, int]) -> CpuWeight:
        """A view of a view."""
        return weight.cut(rows)

    def row_bytes(self, kind: str, dim: int) -> int:
        """As the cache's kernels say."""
        return int(load_cpu(f"cache.{kind}").row_bytes(dim))

    def part(self, place: CpuPlace, row: int) -> CpuPlace:
        """A view."""
        return place.part(row)

    def write(self, place: CpuPlace, values: NDArray[Any]) -> None:
        """Copy into it."""
        place.array(len(values))[:] = values

    def copy(self, source: CpuPlace, rows: int, device: Device, target: Place) -> None:
        """One memory copy."""
        self.stream.enqueue(lambda: device.write(target, source.array(rows)))

    def narrow(self, source: CpuPlace, rows: int, target: CpuPlace) -> None:
        """As a card rounds."""
        self.stream.enqueue(lambda: self.write(target, narrowed(source.array(rows))))

    def sum(self, places: Sequence[CpuPlace], rows: int, target: CpuPlace) -> None:
        """One pass over the memory of each place."""
        self.stream.enqueue(lambda: add_up([p.array(rows) for p in places], target.array(rows)))

    def download(self, source: CpuPlace, rows: int, out: NDArray[np.float32]) -> None:
        """One memory copy."""
        self.stream.enqueue(lambda: np.copyto(out, source.array(rows)))

    def download_top_k(self, source: CpuTopK, rows: int, top: TopK, best: Best) -> None:
        """One look at the logits."""
        self.stream.enqueue(lambda: best.fill(source.array(rows, top)))

    def interrupt(self) -> None:
        """End the program that is running, and those that come; from any thread."""
        self.pool.interrupt()

    def resume(self) -> None:
        """Let programs run again."""
        self.pool.resume()

    def close(self) -> None:
        """End the threads."""
        self.stream.close()
        self.pool.close()


def view(tensor: Tensor, rows: tuple[int, int], columns: tuple[int, int]) -> CpuWeight:
    """A tensor's block where it lies. Columns are cut between blocks of the format."""
    return CpuWeight(
        kernels=_format_module(tensor),
        address=tensor.data.ctypes.data + rows[0] * tensor.row_bytes + tensor.format.nbytes(columns[0]),
        rows=rows[1] - rows[0],
        columns=columns[1] - columns[0],
        row_stride=tensor.row_bytes,
        experts=tensor.shape[2] if len(tensor.shape) > 2 else 1,
        expert_stride=tensor.row_bytes * tensor.shape[1],
        data=tensor.data,
    )


def add_up(arrays: list[NDArray[Any]], out: NDArray[np.float32]) -> None:
    """out = arrays[0] + arrays[1] + ..., in this order; out may be one of them, arrays[0] is used up.

    arrays    of float32, or the bits of bfloat16
    """
    arrays = [array if array.dtype == np.float32 else widened(array) for array in arrays]
    total = arrays[0]
    for array in arrays[1:-1]:
        np.add(total, array, out=total)
    if len(arrays) > 1:
        np.add(total, arrays[-1], out=out)
    else:
        np.copyto(out, total)


def _format_module(tensor: Tensor) -> Any:
    name = f"formats.{tensor.format.name.lower()}"
    try:
        return load_cpu(name)
    except ModuleNotFoundError:
        known = f"the CPU has no kernels for {tensor.format.name}"
        raise GgrunError(f"tensor {tensor.name}: {known}") from None
