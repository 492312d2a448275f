"""Uploads through pinned buffers: while one travels, the next is filled from the mapped file."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggrun.devices.cuda.card_errors import CardErrors
from ggrun.devices.cuda.cuda_stream import CudaEvent, CudaStream
from ggrun.devices.threads import usable_cores

_SIZE, _BUFFERS = 32 << 20, 2  # bytes: the bus needs no larger pieces, and two keep it busy
_THREADS, _ALONE = 8, 1 << 20
"""Threads that fill a buffer, at most, and the bytes that one does alone: to read a mapped file from memory
takes one thread several times as long as the bus takes to carry it."""


class Staging:
    """Pinned buffers of one stream."""

    def __init__(self, cupy: Any, stream: CudaStream, errors: CardErrors) -> None:
        self._runtime, self._stream = cupy.cuda.runtime, stream
        self._pinned = [errors.pinned(_SIZE) for _ in range(_BUFFERS)]
        self._arrays = [np.frombuffer(pinned, np.uint8, _SIZE) for pinned in self._pinned]
        self._sent: list[CudaEvent | None] = [None] * _BUFFERS
        self._turn, self._threads = 0, min(_THREADS, usable_cores())

    def upload(self, address: int, data: NDArray[Any]) -> None:
        """Copy an array, one row of it behind the other. It has been read when this returns."""
        for piece in pieces(data, _SIZE):
            self._send(address, piece)
            address += piece.nbytes

    def _send(self, address: int, piece: NDArray[Any]) -> None:
        turn, self._turn = self._turn, (self._turn + 1) % _BUFFERS
        if sent := self._sent[turn]:
            sent.block()
        buffer = self._arrays[turn][: piece.nbytes]
        self._fill(buffer.view(piece.dtype).reshape(piece.shape), piece)
        kind = self._runtime.memcpyHostToDevice
        self._runtime.memcpyAsync(address, buffer.ctypes.data, piece.nbytes, kind, self._stream.raw.ptr)
        self._sent[turn] = self._stream.record()

    def _fill(self, buffer: NDArray[Any], piece: NDArray[Any]) -> None:
        """Copy, by several threads: NumPy lets others go on meanwhile."""
        axis = int(np.argmax(piece.shape[:2]))  # of experts and rows
        parts = min(self._threads, piece.shape[axis], -(-piece.nbytes // _ALONE))
        if parts < 2:
            np.copyto(buffer, piece)
            return
        shares = (np.array_split(array, parts, axis) for array in (buffer, piece))
        list(self._pool.map(np.copyto, *shares))

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._threads, "ggrun-upload")


def pieces(data: NDArray[Any], size: int) -> Iterator[NDArray[Any]]:
    """Parts of an array of `size` bytes at most, in the order of its values; whole rows where they can be."""
    if data.nbytes <= size:
        yield data
        return
    rows = size // (data.nbytes // len(data))
    if not rows:
        for part in data:
            yield from pieces(part, size)
        return
    for begin in range(0, len(data), rows):
        yield data[begin : begin + rows]
