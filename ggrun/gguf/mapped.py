"""One GGUF file mapped into memory: its header, and its tensors as views whose bounds have been checked."""

import mmap
import os
import stat
from dataclasses import dataclass
from itertools import pairwise
from math import prod

import numpy as np
from numpy.typing import NDArray

from ggrun.gguf.errors import GGUFError, shown
from ggrun.gguf.parse import Header, TensorInfo, parse_header
from ggrun.gguf.types import Format


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """A tensor in a mapped file.

    `shape` is in ggml order: shape[0] is the length of a row, whose elements are contiguous. `data` is a
    read-only 1-D uint8 view of exactly the tensor's bytes, not a copy; the file stays mapped as long as any
    such view lives.
    """

    name: str
    shape: tuple[int, ...]
    format: Format
    data: NDArray[np.uint8]

    @property
    def rows(self) -> int:
        """The number of rows: the product of all dimensions but the first."""
        return prod(self.shape[1:])

    @property
    def row_bytes(self) -> int:
        """The bytes of one row."""
        return self.format.nbytes(self.shape[0])

    @property
    def nbytes(self) -> int:
        """The bytes of the whole tensor."""
        return self.data.size


def map_file(path: str) -> tuple[Header, list[Tensor]]:
    """Map one file read-only and return its header and tensors; GGUFError when anything about it is wrong."""
    data = _mapped(path)
    header, spans = _checked_header(data, path)
    _refuse_truncated(header, spans, len(data), path)
    whole = np.frombuffer(data, np.uint8)
    views = (whole[header.data_start + start : header.data_start + stop] for start, stop in spans)
    return header, [Tensor(i.name, i.shape, i.format, v) for i, v in zip(header.infos, views, strict=True)]


def read_infos(path: str) -> tuple[Header, list[TensorInfo]]:
    """The header of one file and the tensors that it declares, whose bytes need not be there."""
    header, _ = _checked_header(_mapped(path), path)
    return header, header.infos


def _checked_header(data: mmap.mmap, path: str) -> tuple[Header, list[tuple[int, int]]]:
    """The header, and where in the data section each tensor begins and ends."""
    header = parse_header(data, path)
    spans = [_span(header, info, path) for info in header.infos]
    _refuse_overlaps(header.infos, spans, path)
    return header, spans


def _mapped(path: str) -> mmap.mmap:
    # Nobody closes the map: it goes when the last view of it does, so that no view can outlive its memory.
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # a pipe, once opened, would wait for its other end
            kind = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise GGUFError(f"{path}: {kind}, where a GGUF file is needed")
        if status.st_size == 0:
            raise GGUFError(f"{path}: not a GGUF file (it is empty): download it again")
        with open(path, "rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte in it
        raise GGUFError(f"{path}: cannot be opened: {getattr(error, 'strerror', None) or error}") from error


def _span(header: Header, info: TensorInfo, path: str) -> tuple[int, int]:
    try:
        size = info.nbytes
    except ValueError as error:
        raise GGUFError(f"{path}: damaged: tensor {shown(info.name)} has {error}") from error
    if info.offset % header.alignment:
        problem = f"offset {info.offset}, not a multiple of the alignment {header.alignment}"
        raise GGUFError(f"{path}: damaged: tensor {shown(info.name)} has {problem}")
    return info.offset, info.offset + size


def _refuse_overlaps(infos: list[TensorInfo], spans: list[tuple[int, int]], path: str) -> None:
    # No tool writes tensors that overlap, and such would let a small file promise terabytes of weights.
    order = sorted(range(len(spans)), key=spans.__getitem__)
    for a, b in pairwise(order):
        if spans[a][1] > spans[b][0]:
            names = f"{shown(infos[a].name)} and {shown(infos[b].name)}"
            raise GGUFError(f"{path}: damaged: tensors {names} overlap")


def _refuse_truncated(header: Header, spans: list[tuple[int, int]], size: int, path: str) -> None:
    promised = max((stop for _, stop in spans), default=0)
    present = max(size - header.data_start, 0)
    if promised > present:
        promise = f"the header promises {promised} bytes of tensor data, the file has {present}"
        raise GGUFError(f"{path}: truncated: {promise}; download it again")
