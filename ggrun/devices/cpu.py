"""The CPU: weights stay in the mapped file, programs are tables that threads walk together."""

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from ggrun.devices.base import Limits
from ggrun.devices.cpu_memory import zeros
from ggrun.devices.cpu_recorder import CpuBuffer, CpuRecorder
from ggrun.devices.threads import ThreadPool, physical_cores
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


class Cpu:
    """All cores of this machine, or `threads` of them."""

    def __init__(self, threads: int | None = None) -> None:
        self.name = "cpu"
        self.pool = ThreadPool(threads or physical_cores())

    def available(self) -> int:
        """What the system could give without swapping."""
        return int(psutil.virtual_memory().available)

    def bandwidth(self) -> float:
        """Bytes a second that all threads together read from memory: the best of several passes."""
        probe = load_cpu("probe")
        # No cache holds a GiB, or what a machine has when it cannot spare four.
        lines = min(_PROBED, self.available() // 4) // probe.LINE
        data, sums = self.zeros(lines * probe.LINE), np.zeros(self.pool.threads, np.int32)
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
        return CpuRecorder(self.pool, limits)

    def zeros(self, nbytes: int) -> NDArray[np.uint8]:
        """Zeroed memory, aligned to cache lines."""
        return zeros(nbytes)

    def vector(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """The vector itself, contiguous."""
        return np.ascontiguousarray(values, np.float32)

    def weight(self, tensor: Tensor, rows: tuple[int, int], columns: tuple[int, int]) -> CpuWeight:
        """A view: nothing is copied. Columns are cut between blocks."""
        module = _format_module(tensor)
        experts = tensor.shape[2] if len(tensor.shape) > 2 else 1
        return CpuWeight(
            kernels=module,
            address=tensor.data.ctypes.data + rows[0] * tensor.row_bytes + tensor.format.nbytes(columns[0]),
            rows=rows[1] - rows[0],
            columns=columns[1] - columns[0],
            row_stride=tensor.row_bytes,
            experts=experts,
            expert_stride=tensor.row_bytes * tensor.shape[1],
            data=tensor.data,
        )

    def write(self, buffer: CpuBuffer, values: NDArray[np.float32]) -> None:
        """Copy into the buffer."""
        buffer.array(len(values))[:] = values

    def read(self, buffer: CpuBuffer, rows: int) -> NDArray[np.float32]:
        """Copy out of the buffer."""
        return buffer.array(rows).copy()

    def row_bytes(self, kind: str, dim: int) -> int:
        """As the cache's kernels say."""
        return int(load_cpu(f"cache.{kind}").row_bytes(dim))

    def interrupt(self) -> None:
        """End the program that is running, and those that come; from any thread."""
        self.pool.interrupt()

    def resume(self) -> None:
        """Let programs run again."""
        self.pool.resume()

    def close(self) -> None:
        """End the threads."""
        self.pool.close()


def _format_module(tensor: Tensor) -> Any:
    name = f"formats.{tensor.format.name.lower()}"
    try:
        return load_cpu(name)
    except ModuleNotFoundError:
        known = f"the CPU has no kernels for {tensor.format.name}"
        raise GgrunError(f"tensor {tensor.name}: {known}") from None
