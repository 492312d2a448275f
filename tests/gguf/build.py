"""GGUF files put together byte by byte, so that each part can be wrong, and what a refusal looks like."""

import struct
from pathlib import Path

import pytest

from ggrun.gguf import GGUF, GGUFError, ValueType

F32, Q4_0 = 0, 2


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def pair(key: bytes, kind: int, payload: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + payload


def array(kind: int, count: int, payload: bytes) -> bytes:
    return struct.pack("<IQ", kind, count) + payload


def number(key: bytes, value: int) -> bytes:
    return pair(key, ValueType.UINT32, struct.pack("<I", value))


def info(name: bytes = b"w", dims: tuple[int, ...] = (8,), format: int = F32, offset: int = 0) -> bytes:
    return string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, format, offset)


def gguf(
    pairs: tuple[bytes, ...] = (),
    infos: tuple[bytes, ...] = (),
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    n_infos: int | None = None,
    n_pairs: int | None = None,
    alignment: int = 32,
) -> bytes:
    counts = (len(infos) if n_infos is None else n_infos, len(pairs) if n_pairs is None else n_pairs)
    head = magic + struct.pack("<IQQ", version, *counts) + b"".join(pairs + infos)
    return head + bytes(-len(head) % alignment) + data


def put(folder: Path, raw: bytes, name: str = "model.gguf") -> Path:
    path = folder / name
    path.write_bytes(raw)
    return path


def refusal(path: Path) -> str:
    """Open a file that must be refused; return why, after checking that a user can be shown the message."""
    with pytest.raises(GGUFError) as caught:
        GGUF.open(path)
    text = str(caught.value)
    assert text.isprintable(), "one line, nothing that a terminal would act on"
    assert len(text) < 400 + len(str(path))
    return text
