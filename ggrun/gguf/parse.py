"""The header of one GGUF file: every count, length and type in it is checked before it is used."""

import struct
from dataclasses import dataclass
from mmap import mmap
from typing import NoReturn

import numpy as np

from ggrun.gguf.errors import GGUFError, shown
from ggrun.gguf.types import (
    DEFAULT_ALIGNMENT,
    DTYPES,
    FORMATS_BY_ID,
    MAX_DIMS,
    Format,
    Value,
    ValueType,
    aligned,
    checked_alignment,
    tensor_nbytes,
)

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_NAME = 65535  # bytes of a key or a tensor's name, from the GGUF specification
_WINDOW = 1 << 16  # bytes of a string array that are copied at a time
_MIN_PAIR = 8 + 1 + 4 + 1  # bytes of the smallest key-value pair: length, letter, type, value
_MIN_INFO = 8 + 1 + 4 + 8 + 4 + 8  # of the smallest tensor: length, letter, dimensions, size, format, offset
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor as the header declares it; `offset` is in bytes from the start of the data section."""

    name: str
    shape: tuple[int, ...]
    format: Format
    offset: int

    @property
    def row_bytes(self) -> int:
        """The bytes of one row."""
        return self.format.nbytes(self.shape[0])

    @property
    def nbytes(self) -> int:
        """The bytes of the whole tensor; ValueError when no tensor can have this shape."""
        return tensor_nbytes(self.shape, self.format)


@dataclass(frozen=True, slots=True)
class Header:
    """All that stands before the tensors' bytes, which begin at byte `data_start` of the file."""

    version: int
    metadata: dict[str, Value]
    infos: list[TensorInfo]
    alignment: int
    data_start: int


class Cursor:
    """Walks over the bytes of a header and fails with one clear line where they end or make no sense."""

    def __init__(self, data: mmap | bytes, path: str) -> None:
        self.data, self.path, self.pos, self.end = data, path, 0, len(data)

    def fail(self, problem: str) -> NoReturn:
        """Raise the GGUFError that names the file and the problem."""
        raise GGUFError(f"{self.path}: {problem}")

    def skip(self, n: int) -> int:
        """Step over `n` bytes that must be there; return where they start."""
        start = self.pos
        if n > self.end - start:
            self.fail(f"truncated: the header goes on after the file's {self.end} bytes; download it again")
        self.pos = start + n
        return start

    def u32(self) -> int:
        """Read an unsigned number of 4 bytes."""
        value: int = _U32.unpack_from(self.data, self.skip(4))[0]
        return value

    def u64(self) -> int:
        """Read an unsigned number of 8 bytes."""
        value: int = _U64.unpack_from(self.data, self.skip(8))[0]
        return value

    def count(self, what: str, smallest: int) -> int:
        """Read the number of things of `smallest` bytes or more each, which must fit into what is left."""
        n = self.u64()
        if n * smallest > self.end - self.pos:
            self.fail(f"damaged or truncated: {n} {what} do not fit into {self.end} bytes; download it again")
        return n

    def bytes(self, what: str) -> bytes:
        """Read a length and as many bytes."""
        n = self.count(what, 1)
        start = self.skip(n)
        return self.data[start : self.pos]

    def string(self) -> str:
        """Read a string value, in which bytes that are not UTF-8 become surrogate escapes."""
        return self.bytes("bytes of a string").decode("utf-8", "surrogateescape")

    def name(self, what: str, known: dict[str, Value] | set[str]) -> str:
        """Read the name of a key or a tensor: UTF-8, not empty, not absurdly long, not known already."""
        raw = self.bytes(f"bytes of a {what}")
        if not 1 <= len(raw) <= MAX_NAME:
            self.fail(f"damaged: a {what} of {len(raw)} bytes, where 1 to {MAX_NAME} are possible")
        try:
            name = raw.decode()
        except UnicodeDecodeError:
            self.fail(f"damaged: the {what} {shown(raw.decode('utf-8', 'replace'))} is not valid UTF-8")
        if name in known:
            self.fail(f"damaged: the {what} {shown(name)} appears twice")
        return name


def parse_header(data: mmap | bytes, path: str) -> Header:
    """Read the header at the start of a file's bytes; GGUFError when it is not one that can be trusted."""
    cursor = Cursor(data, path)
    version = _version(cursor)
    n_tensors, n_pairs = cursor.count("tensors", _MIN_INFO), cursor.count("metadata pairs", _MIN_PAIR)
    metadata: dict[str, Value] = {}
    for _ in range(n_pairs):
        key = cursor.name("metadata key", metadata)
        metadata[key] = _value(cursor, key)
    infos = _infos(cursor, n_tensors)
    try:
        alignment = checked_alignment(metadata.get("general.alignment", DEFAULT_ALIGNMENT))
    except ValueError as error:
        cursor.fail(f"damaged: {error}")
    return Header(version, metadata, infos, alignment, aligned(cursor.pos, alignment))


def _version(cursor: Cursor) -> int:
    magic = cursor.data[:4]
    if magic != MAGIC:
        cursor.fail(f"not a GGUF file (starts with {magic!r}): check the path, or download it again")
    cursor.skip(4)
    version = cursor.u32()
    if version not in VERSIONS:
        if version and version & 0xFFFF == 0:
            cursor.fail("a big-endian GGUF file, which ggrun does not read: convert it to little endian")
        cursor.fail(f"GGUF version {version}; ggrun reads versions 2 and 3: convert the model again")
    return version


def _value(cursor: Cursor, key: str) -> Value:
    kind = _value_type(cursor, key)
    if kind is ValueType.STRING:
        return cursor.string()
    if kind is not ValueType.ARRAY:
        scalar: Value = _numbers(cursor, key, kind, 1)[0].item()
        return scalar
    element = _value_type(cursor, key)
    if element is ValueType.ARRAY:
        cursor.fail(f"the value of {shown(key)} is an array of arrays, which GGUF readers do not support")
    if element is ValueType.STRING:
        return _strings(cursor, cursor.count("strings", 8))
    return _numbers(cursor, key, element, cursor.count("numbers", DTYPES[element].itemsize))


def _value_type(cursor: Cursor, key: str) -> ValueType:
    number = cursor.u32()
    try:
        return ValueType(number)
    except ValueError:
        cursor.fail(f"damaged: the value of {shown(key)} has the unknown type {number}")


def _numbers(
    cursor: Cursor, key: str, kind: ValueType, n: int
) -> np.ndarray[tuple[int], np.dtype[np.generic]]:
    dtype = DTYPES[kind]
    start = cursor.skip(n * dtype.itemsize)
    raw = np.frombuffer(cursor.data, np.uint8, n * dtype.itemsize, start)
    if kind is ValueType.BOOL and raw.max(initial=0) > 1:
        cursor.fail(f"damaged: the value of {shown(key)} is a bool of {raw.max()}, neither 0 nor 1")
    return raw.copy().view(dtype)  # a copy: values in a file are not aligned


def _strings(cursor: Cursor, n: int) -> list[str]:
    strings: list[str] = []
    while len(strings) < n:
        window = cursor.data[cursor.pos : cursor.pos + _WINDOW]
        pieces, taken = _pieces(window, n - len(strings))
        cursor.skip(taken)
        # No piece at all: a string that is longer than the window, or than the file.
        strings += _decoded(pieces) if pieces else [cursor.string()]
    return strings


def _pieces(window: bytes, n: int) -> tuple[list[bytes], int]:
    # A vocabulary has up to a million strings, so the loop does for each only what it must: bytes slice
    # faster than a map does, and a string that does not fit into them ends the loop and is the caller's.
    pieces: list[bytes] = []
    unpack, append = _U64.unpack_from, pieces.append
    pos, limit = 0, len(window)
    last_length = limit - 8
    for _ in range(n):
        if pos > last_length:
            break
        (size,) = unpack(window, pos)
        start = pos + 8
        end = start + size
        if end > limit:
            break
        append(window[start:end])
        pos = end
    return pieces, pos


def _decoded(pieces: list[bytes]) -> list[str]:
    try:
        return [piece.decode() for piece in pieces]
    except UnicodeDecodeError:
        return [piece.decode("utf-8", "surrogateescape") for piece in pieces]


def _infos(cursor: Cursor, n: int) -> list[TensorInfo]:
    infos: list[TensorInfo] = []
    names: set[str] = set()
    for _ in range(n):
        infos.append(_info(cursor, names))
        names.add(infos[-1].name)
    return infos


def _info(cursor: Cursor, names: set[str]) -> TensorInfo:
    name = cursor.name("tensor name", names)
    n_dims = cursor.u32()
    if n_dims > MAX_DIMS:  # must be known before as many are read; all else about the shape is asked later
        cursor.fail(f"damaged: tensor {shown(name)} has {n_dims} dimensions, and {MAX_DIMS} is the most")
    shape = tuple(cursor.u64() for _ in range(n_dims))
    number = cursor.u32()
    format = FORMATS_BY_ID.get(number)
    if format is None:
        cursor.fail(f"tensor {shown(name)} has format {number}: removed from GGUF, or newer than this ggrun")
    return TensorInfo(name, shape, format, cursor.u64())
