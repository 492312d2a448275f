"""Messages on a stream: large ones go in pieces, and one that is too large is refused by its first bytes."""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

from google.protobuf.message import DecodeError, Message

from ggrun.rpc.wire import SMALL, ProtocolError, Room

PIECE = 4 << 20
"""Bytes of what gRPC gets as a message: all pieces of one of ours, but the last, have so many."""
_LENGTH = 2  # the wire type of what is in a message: its length, then its bytes


def split(message: Message) -> Iterator[bytes]:
    """The pieces of a Request, a Reply or an InboxRequest."""
    data = message.SerializeToString()
    if len(data) <= PIECE:
        yield data
        return
    for begin in range(0, len(data), PIECE):
        yield data[begin : begin + PIECE]


def messages(
    kind: type[Message], pieces: Iterable[bytes], room: Callable[[str], Room]
) -> Iterator[tuple[str, Any]]:
    """The name and the content of each message that comes in pieces; ProtocolError when one is none.

    kind    has one oneof: so each message is one field, which begins with its number and its length
    room    of a message of this name now; what is larger is neither waited for nor parsed
    """
    names = {field.number << 3 | _LENGTH: field.name for field in kind.DESCRIPTOR.fields}
    source = iter(pieces)
    for first in source:
        tag, at = _number(first, 0)
        size, at = _number(first, at)
        if (name := names.get(tag)) is None:
            raise _none()
        most = room(name)
        if size > most.nbytes:
            raise ProtocolError(f"{size} bytes of {name} came: up to {most.nbytes} are possible now")
        whole = len(first) == at + size <= PIECE
        data = first if whole else b"".join(_whole(first, source, at + size))
        if size > SMALL.nbytes:
            _count(data, at, most.fields, name)
        try:
            yield name, getattr(kind.FromString(data), name)
        except DecodeError:
            raise _none() from None


def _whole(first: bytes, rest: Iterator[bytes], size: int) -> Iterator[bytes]:
    """The pieces of one message. Each is as large as it can be: many small ones would take much memory."""
    left = size
    for piece in chain((first,), rest):
        if len(piece) != min(left, PIECE):
            raise _none()
        left -= len(piece)
        yield piece
        if not left:
            return
    raise _none()


def _count(data: bytes, at: int, most: int, name: str) -> None:
    """ProtocolError for more fields than there may be: parsed, an empty one of 2 bytes takes 80."""
    count = 0
    while at < len(data):
        if (count := count + 1) > most:
            raise ProtocolError(f"more than {most} fields of {name} came")
        tag, at = _number(data, at)
        if (kind := tag & 7) == _LENGTH:
            size, at = _number(data, at)
            at += size
        elif kind == 0:
            _, at = _number(data, at)
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise _none()


def _number(data: bytes, at: int) -> tuple[int, int]:
    """The number that is written at a place, and the place behind it."""
    value = shift = 0
    for place in range(at, min(at + 10, len(data))):
        value |= (data[place] & 0x7F) << shift
        if data[place] < 0x80:
            return value, place + 1
        shift += 7
    raise _none()


def _none() -> ProtocolError:
    return ProtocolError("what came is no message of ggrun")
