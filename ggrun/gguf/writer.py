"""Writing GGUF files: streamed to disk, published all at once or not at all, in shards where asked for."""

import contextlib
import os
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from ggrun.gguf.errors import GGUFError, shown
from ggrun.gguf.mapped import Tensor
from ggrun.gguf.parse import MAGIC, MAX_NAME
from ggrun.gguf.shards import SPLIT_COUNT, SPLIT_NO, SPLIT_TENSORS, shard_name
from ggrun.gguf.types import (
    DEFAULT_ALIGNMENT,
    DTYPES,
    Format,
    ValueType,
    aligned,
    checked_alignment,
    tensor_nbytes,
)

VERSION = 3
_TYPES = {dtype: kind for kind, dtype in DTYPES.items()}

Bytes = bytes | bytearray | memoryview | NDArray[Any]
"""A piece of a tensor's data: anything contiguous that is its bytes in memory, a typed numpy array too."""


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """A tensor to be written: its ggml shape, and its bytes or a function that yields them piece by piece."""

    name: str
    shape: tuple[int, ...]
    format: Format
    data: Bytes | Callable[[], Iterable[Bytes]]


def write_gguf(
    path: str | os.PathLike[str],
    metadata: Mapping[str, Any],
    tensors: Sequence[Source | Tensor] = (),
    *,
    max_tensors: int | None = None,
    max_bytes: int | None = None,
) -> list[Path]:
    """Write a GGUF v3 file, or shards of at most `max_tensors` tensors and `max_bytes` bytes of them each.

    Metadata: Python's bool, int and float (as 32 bits where that is enough), str, and lists of one of them;
    numpy scalars and 1-D arrays keep their own type. `general.alignment` is obeyed, `split.*` set anew.
    Returns the paths written: `path` itself, or NAME-00001-of-0000N.gguf and so on when one shard is not
    enough. Fails with a GGUFError, after which no file and no part of one is left behind.
    """
    target = os.fspath(path)
    try:
        _refuse_twins(tensors)
        parts = _parts(target, metadata, _sharded(tensors, max_tensors, max_bytes))
    except (ValueError, OverflowError, struct.error) as error:
        raise GGUFError(f"{target}: cannot be written: {error}") from error
    try:
        return _publish(parts)
    except OSError as error:
        raise GGUFError(f"{target}: cannot be written: {error.strerror or error}") from error


@dataclass(frozen=True, slots=True)
class _Part:
    """One file to be written: all of its header, and the tensors that follow."""

    path: str
    header: bytes
    alignment: int
    tensors: Sequence[Source | Tensor]


def _refuse_twins(tensors: Sequence[Source | Tensor]) -> None:
    names = set()
    for tensor in tensors:
        if tensor.name in names:
            raise ValueError(f"two tensors have the name {shown(tensor.name)}")
        names.add(tensor.name)


def _sharded(
    tensors: Sequence[Source | Tensor], max_tensors: int | None, max_bytes: int | None
) -> list[list[Source | Tensor]]:
    shards: list[list[Source | Tensor]] = [[]]
    size = 0
    for tensor in tensors:
        n = tensor_nbytes(tensor.shape, tensor.format)
        full = max_tensors is not None and len(shards[-1]) >= max_tensors
        if shards[-1] and (full or (max_bytes is not None and size + n > max_bytes)):
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += n
    return shards


def _parts(target: str, metadata: Mapping[str, Any], shards: list[list[Source | Tensor]]) -> list[_Part]:
    alignment = checked_alignment(metadata.get("general.alignment", DEFAULT_ALIGNMENT))
    own = {key: value for key, value in metadata.items() if not key.startswith("split.")}
    if len(shards) == 1:
        return [_Part(target, _header(own, shards[0], alignment), alignment, shards[0])]
    stem = target.removesuffix(".gguf")
    rest = {"general.alignment": alignment} if "general.alignment" in metadata else {}
    every = {SPLIT_COUNT: np.uint16(len(shards)), SPLIT_TENSORS: np.int32(sum(map(len, shards)))}
    parts = []
    for i, tensors in enumerate(shards):
        header = _header((rest if i else own) | every | {SPLIT_NO: np.uint16(i)}, tensors, alignment)
        parts.append(_Part(shard_name(stem, i, len(shards)), header, alignment, tensors))
    return parts


def _publish(parts: list[_Part]) -> list[Path]:
    # Written beside their place and then renamed: an old file of the same name, perhaps mapped by a running
    # program, stays as it is until the new one is complete.
    made: list[str] = []
    moves = [(_hidden(part.path), part.path) for part in parts]
    try:
        for part, (hidden, _) in zip(parts, moves, strict=True):
            with open(hidden, "xb") as file:
                made.append(hidden)
                _write_part(file, part)
        for hidden, path in moves:
            os.replace(hidden, path)
            made.append(path)
    except BaseException:
        for name in made:
            with contextlib.suppress(OSError):
                os.unlink(name)
        raise
    return [Path(path) for _, path in moves]


def _hidden(path: str) -> str:
    folder, name = os.path.split(path)
    return os.path.join(folder, f".{name}.{os.getpid()}.tmp")


def _write_part(file: BinaryIO, part: _Part) -> None:
    file.write(part.header)
    for tensor in part.tensors:
        written = _write_data(file, tensor, part.path)
        file.write(bytes(aligned(written, part.alignment) - written))
    file.flush()
    os.fsync(file.fileno())


def _write_data(file: BinaryIO, tensor: Source | Tensor, path: str) -> int:
    wanted, written = tensor_nbytes(tensor.shape, tensor.format), 0
    for chunk in tensor.data() if callable(tensor.data) else (tensor.data,):
        written += file.write(memoryview(cast(Any, chunk)))  # mypy knows buffers from Python 3.12 on
        if written > wanted:
            break
    if written != wanted:
        than = "more" if written > wanted else f"{written} bytes of data, fewer"
        raise GGUFError(
            f"{path}: not written: tensor {shown(tensor.name)} has {than} than its {wanted} bytes"
        )
    return written


def _header(metadata: Mapping[str, Any], tensors: Sequence[Source | Tensor], alignment: int) -> bytes:
    out = bytearray(MAGIC + struct.pack("<IQQ", VERSION, len(tensors), len(metadata)))
    for key, value in metadata.items():
        out += _name(key) + _value(value, key)
    offset = 0
    for tensor in tensors:
        out += _name(tensor.name) + struct.pack("<I", len(tensor.shape))
        out += struct.pack(f"<{len(tensor.shape)}QIQ", *tensor.shape, tensor.format.id, offset)
        offset = aligned(offset + tensor_nbytes(tensor.shape, tensor.format), alignment)
    return bytes(out.ljust(aligned(len(out), alignment), b"\0"))


def _name(name: str) -> bytes:
    raw = name.encode()
    if not 1 <= len(raw) <= MAX_NAME:
        raise ValueError(f"a name of {len(raw)} bytes, where 1 to {MAX_NAME} are possible")
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Any, key: str) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", ValueType.STRING) + _string(value)
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        head = struct.pack("<IIQ", ValueType.ARRAY, ValueType.STRING, len(value))
        return head + b"".join(map(_string, value))
    array = np.asarray(value) if isinstance(value, np.generic | np.ndarray) else _narrowed(np.asarray(value))
    kind = _TYPES.get(array.dtype.newbyteorder("<"))
    if kind is None or array.ndim > 1:
        raise ValueError(
            f"the value of {shown(key)} is neither a number, a bool, a string nor a list of one of them"
        )
    raw = array.astype(DTYPES[kind]).tobytes()
    if array.ndim == 0:
        return struct.pack("<I", kind) + raw
    return struct.pack("<IIQ", ValueType.ARRAY, kind, array.size) + raw


def _string(text: str) -> bytes:
    raw = text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(raw)) + raw


def _narrowed(array: NDArray[Any]) -> NDArray[Any]:
    # Python's numbers have no width: llama.cpp asks for uint32 and float32 scalars, and for int32 arrays.
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):
            single = array.astype(np.float32)
        return single if (np.isinf(single) == np.isinf(array)).all() else array
    if array.dtype.kind in "iu":
        for dtype in ("i4", "u4", "i8") if array.ndim else ("u4", "i4", "i8"):
            if ((narrow := array.astype(dtype)) == array).all():
                return narrow
    return array
