"""What lies on a card, as the rest of ggrun holds it: addresses, and what keeps them good."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from weakref import finalize

import numpy as np
from numpy.typing import NDArray

from ggrun.devices.base import Rows
from ggrun.devices.cuda.driver import Allocation, OutOfMemory
from ggrun.devices.cuda.program import Step
from ggrun.devices.wire import DTYPES
from ggrun.errors import GgrunError, Retold
from ggrun.gguf import Tensor

ALIGNMENT = 256
"""Bytes: where allocations begin."""


@dataclass(frozen=True, eq=False)
class CudaMemory:
    """Some bytes of a card, or of the host where the card can reach them."""

    address: int
    nbytes: int
    allocation: Allocation


@dataclass(frozen=True, eq=False)
class CudaWeight:
    """A matrix [rows, columns], or one an expert behind the other, in its own format."""

    format: str
    memory: CudaMemory
    address: int
    rows: int
    columns: int
    row_bytes: int
    experts: int = 1

    @classmethod
    def of(cls, tensor: Tensor, data: NDArray[np.uint8], memory: CudaMemory, address: int) -> "CudaWeight":
        """A tensor's block that lies at an address of some memory. data: see block."""
        experts, rows, row_bytes = data.shape
        columns = row_bytes // tensor.format.size * tensor.format.block
        return cls(tensor.format.name, memory, address, rows, columns, row_bytes, experts)

    def cut(self, rows: tuple[int, int]) -> "CudaWeight":
        """The rows from rows[0] to rows[1]."""
        begin, end = rows
        return replace(self, address=self.address + begin * self.row_bytes, rows=end - begin)


def block(tensor: Tensor, rows: tuple[int, int], columns: tuple[int, int]) -> NDArray[np.uint8]:
    """A tensor's block of rows and columns where it lies in the file: bytes [experts, rows, bytes a row]."""
    experts = tensor.shape[2] if len(tensor.shape) > 2 else 1
    begin, end = (tensor.format.nbytes(column) for column in columns)
    whole: NDArray[np.uint8] = tensor.data.reshape(experts, tensor.shape[1], tensor.row_bytes)
    return whole[:, rows[0] : rows[1], begin:end]


def needed_for(what: str, device: str) -> Retold:
    """Errors of a card's driver say, too, for what it was: a tensor, mostly."""

    def told(error: GgrunError) -> GgrunError:
        if isinstance(error, OutOfMemory):
            return OutOfMemory(f"{device}: no memory for {what}: {error}")
        return GgrunError(f"{device}: {what}: {error}")

    return Retold(GgrunError, told)


@dataclass(frozen=True)
class CudaPlace:
    """Where a buffer's rows lie, whatever becomes of the buffer. kind: see wire.DTYPES."""

    address: int
    width: int
    kind: str = "f32"

    def nbytes(self, rows: int) -> int:
        """The bytes of so many rows."""
        return rows * self.width * DTYPES[self.kind].itemsize

    def part(self, row: int) -> "CudaPlace":
        """The rows from this one on."""
        return replace(self, address=self.address + self.nbytes(row))


class Pool:
    """Memory of dropped buffers, by size, to be used again by later operations."""

    def __init__(self, allocate: Callable[[int], CudaMemory]) -> None:
        self._allocate = allocate
        self._free: dict[int, list[CudaMemory]] = defaultdict(list)
        self.all: list[CudaMemory] = []

    def take(self, nbytes: int) -> CudaMemory:
        """Memory that is free, or more of it."""
        nbytes = max(1, -(-nbytes // ALIGNMENT)) * ALIGNMENT
        return self._free[nbytes].pop() if self._free[nbytes] else self.new(nbytes)

    def new(self, nbytes: int) -> CudaMemory:
        """Memory that nobody else gets."""
        self.all.append(self._allocate(nbytes))
        return self.all[-1]

    def give(self, memory: CudaMemory) -> None:
        """Memory that may be taken again: what is enqueued later comes later."""
        self._free[memory.nbytes].append(memory)


class CudaBuffer:
    """Rows of float32, or of quantized columns, whose memory goes back when it is dropped."""

    def __init__(self, pool: Pool, rows: Rows, width: int, row_bytes: int, limit: int) -> None:
        self.rows, self.width, self.row_bytes, self.limit = rows, width, row_bytes, limit
        memory = pool.take(row_bytes * limit)
        self.address = memory.address
        self.quantized: CudaBuffer | None = None
        """Its columns, for as long as it is not written to."""
        self.halves: CudaBuffer | None = None
        """The same as float16."""
        self.step: Step | None = None
        """What has written it, where a later operation may want to change that."""
        self.used: tuple[CudaBuffer, ...] = ()
        """What that step works with: its memory must not be taken for what the step may come to write."""
        finalize(self, pool.give, memory).atexit = False


def address_of(thing: Any) -> int:
    """Where something lies; 0 for None."""
    return 0 if thing is None else int(thing.address)
