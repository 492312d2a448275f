"""Numbers on the wire: arrays to bytes and back. Nothing that comes is trusted."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ggrun.devices.base import Limits
from ggrun.devices.best import MOST_K, TopK
from ggrun.engine.batch import Batch
from ggrun.errors import GgrunError, UsageError
from ggrun.rpc import ggrun_pb2 as pb

LARGEST_MESSAGE = 130 << 20
"""Bytes: activations of 2048 tokens of a width of 16384, and what is said of them."""
_BESIDE = 1 << 20
"""Bytes of it for all that does not grow with the tokens: pages, above all."""
_BESIDE_TOKEN = 16
_BESIDE_FIELD = 32
"""Bytes of a field's number and length, or of a number; in a table of both."""
_FIELDS = 16
"""More than a message has of those that are there once."""
FORMS = {"f32": pb.F32, "f16": pb.F16, "bf16": pb.BF16}
"""How activations may go over the wire, by the names that users give."""
_LARGEST_F16 = 65504.0
_QUIET = np.uint32(0x40)
"""The bit of a bfloat16 that keeps a NaN one, whatever the bits were that are cut off."""
_SHOWN = 300
_INT32 = np.dtype("<i4")


class ProtocolError(GgrunError):
    """The other side sent what it must not send."""


@dataclass(frozen=True)
class Bounds:
    """What the numbers of a batch must keep to."""

    limits: Limits
    cells: int  # of the KV cache
    vocab: int


@dataclass(frozen=True)
class Room:
    """How large a message may be.

    Parsed, bytes and texts take what they took before; but an empty Tensor or Table of 2 bytes takes 80, and
    numbers of a list 15 times their bytes. The worst of all, an Open, takes 30 MiB; see opening.ROOM.
    """

    nbytes: int
    fields: int = 1 << 16  # is looked at in what is larger than SMALL


SMALL = Room(64 << 10)
"""Of all that does not grow with the model; parsed, 3 MiB."""


def forward_room(limits: Limits, activations: int) -> Room:
    """Of a Forward; activations: their bytes, at most."""
    numbers = _BESIDE_TOKEN * limits.tokens + limits.tokens  # four int32 and one byte each
    tables = limits.sequences * (4 * limits.pages + _BESIDE_FIELD)
    nbytes = activations + numbers + tables + _FIELDS * _BESIDE_FIELD
    return Room(min(nbytes, LARGEST_MESSAGE), limits.sequences + _FIELDS)


def result_room(limits: Limits, activations: int, vocab: int) -> Room:
    """Of a Result, of any part."""
    logits = limits.outputs * max(4 * vocab, 8 * MOST_K)
    return Room(max(activations, logits) + _FIELDS * _BESIDE_FIELD, _FIELDS)


def check_tokens(tokens: int, width: int, form: int) -> None:
    """UsageError when so many of them at a time make larger messages than there can be."""
    row = width * _size(form)
    most = (LARGEST_MESSAGE - _BESIDE) // (row + _BESIDE_TOKEN)
    if tokens > most:
        raise UsageError(f"-ub {tokens}: workers take up to {most} tokens of this model at a time")


def activation_bytes(tokens: int, width: int, form: int) -> int:
    """The bytes of activations in a form of the wire."""
    return tokens * width * _size(form)


def encode(values: NDArray[np.float32], form: int) -> bytes:
    """Float32 values in a form of the wire: infinite ones and NaN stay what they are.

    F16 holds no more than 65504: larger finite ones become that.
    """
    if form == pb.F16:
        clipped = np.clip(values, -_LARGEST_F16, _LARGEST_F16)
        return np.where(np.isinf(values), values, clipped).astype("<f2").tobytes()
    if form == pb.BF16:
        bits = np.ascontiguousarray(values).view(np.uint32)
        rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16  # to nearest, ties to even
        return np.where(np.isnan(values), (bits >> 16) | _QUIET, rounded).astype("<u2").tobytes()
    return values.astype("<f4", copy=False).tobytes()


def decode(data: bytes, form: int, rows: int, width: int) -> NDArray[np.float32]:
    """Such bytes as float32 [rows, width]; ProtocolError when there are not exactly so many."""
    if len(data) != activation_bytes(rows, width, form):
        raise ProtocolError(
            f"{len(data)} bytes came where {rows} x {width} values of {_size(form)} bytes belong"
        )
    if form == pb.F16:
        values = np.frombuffer(data, "<f2").astype(np.float32)
    elif form == pb.BF16:
        values = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    else:
        values = np.frombuffer(data, "<f4")
    return values.reshape(rows, width)


def forward(batch: Batch, run: int, number: int, part: int, first: bool) -> "pb.Forward":
    """A batch as a message, without activations; first: its part has the embedding, and needs tokens."""
    message = pb.Forward(
        run=run,
        batch=number,
        part=part,
        positions=_bytes(batch.positions),
        sequences=_bytes(batch.sequences),
        slots=_bytes(batch.slots),
        outputs=batch.outputs.astype(np.uint8).tobytes(),
        tables=[pb.Table(sequence=s, pages=_bytes(pages)) for s, pages in batch.tables.items()],
    )
    if batch.top:
        message.top, message.words = batch.top.k, batch.top.words
    if first:
        message.tokens = _bytes(batch.tokens)
    return message


def batch(message: "pb.Forward", bounds: Bounds, first: bool) -> Batch:
    """The batch of a message; ProtocolError where a number could reach beyond any memory."""
    limits, n = bounds.limits, len(message.outputs)
    if not 1 <= n <= limits.tokens:
        raise ProtocolError(f"a batch of {n} tokens, where 1 to {limits.tokens} are possible")
    ones = message.outputs.count(1)
    if message.outputs.count(0) + ones != n or ones > limits.outputs:
        raise ProtocolError(f"a batch wants more than {limits.outputs} logits, or what is not 0 or 1")
    if len(message.tables) > limits.sequences:
        raise ProtocolError(f"tables of {len(message.tables)} sequences, there are {limits.sequences}")
    tables = {}
    for table in message.tables:
        if table.sequence >= limits.sequences:
            raise ProtocolError(f"sequence {table.sequence}: there are {limits.sequences}")
        size = min(len(table.pages) // 4, limits.pages)
        tables[table.sequence] = _numbers("pages", table.pages, size, limits.pages)
    if message.top > MOST_K:
        raise ProtocolError(f"the {message.top} best logits: no more than {MOST_K} can be had")
    if not first and message.tokens:
        raise ProtocolError("tokens came for a part without the embedding")
    return Batch(
        _numbers("tokens", message.tokens, n, bounds.vocab) if first else np.zeros(n, np.int32),
        _numbers("positions", message.positions, n, bounds.cells),
        _numbers("sequences", message.sequences, n, limits.sequences),
        _numbers("slots", message.slots, n, bounds.cells),
        np.frombuffer(message.outputs, np.bool_),
        tables,
        TopK(message.top, message.words) if message.top else None,
    )


def ids(data: bytes, logits: NDArray[np.float32], end: int) -> NDArray[np.int32]:
    """The ids of the best logits, from 0 to end - 1, and -1 where there are no more; ProtocolError."""
    if len(data) != 4 * logits.size:
        raise ProtocolError(f"{len(data)} bytes of ids came for {logits.size} logits")
    found = np.frombuffer(data, _INT32).reshape(logits.shape)
    few = found.ravel().tolist()
    none = -1 if -1 in few and (logits[found == -1] == -np.inf).all() else 0
    if few and not none <= min(few) <= max(few) < end:
        raise ProtocolError(f"one of the ids of the best logits is not from 0 to {end - 1}")
    return found


def shown(text: str) -> str:
    """A text of the other side's in one line that cannot steer a terminal."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text[:_SHOWN].split()))


def _size(form: int) -> int:
    """Bytes of a value."""
    return 4 if form == pb.F32 else 2


def _bytes(numbers: NDArray[np.int32]) -> bytes:
    return numbers.astype(_INT32, copy=False).tobytes()


def _numbers(what: str, data: bytes, n: int, end: int) -> NDArray[np.int32]:
    """n numbers from 0 to end - 1."""
    if len(data) != 4 * n:
        raise ProtocolError(f"{len(data)} bytes of {what} came where {n} numbers belong")
    numbers = np.frombuffer(data, _INT32)
    few = numbers.tolist()
    if n and not 0 <= min(few) <= max(few) < end:
        raise ProtocolError(f"one of the {what} is not from 0 to {end - 1}")
    return numbers
