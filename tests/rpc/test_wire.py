"""Messages: generated code, activations in their forms, batches there and back."""

from pathlib import Path

import numpy as np
import pytest

import ggrun.rpc
from ggrun.devices.base import Limits
from ggrun.engine.batch import Batch
from ggrun.errors import UsageError
from ggrun.rpc import ggrun_pb2 as pb
from ggrun.rpc.wire import (
    LARGEST_MESSAGE,
    Bounds,
    ProtocolError,
    batch,
    check_tokens,
    decode,
    encode,
    forward,
    forward_room,
    shown,
)

FOLDER = Path(ggrun.rpc.__file__).parent
BOUNDS = Bounds(Limits(8, 4, 3, 2), 128, 50)


def test_generated_code_is_up_to_date(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools")
    from tools.make_protocol import make

    make(tmp_path)
    for name in ("ggrun_pb2.pyi", "ggrun_pb2.py"):
        made, kept = ((folder / name).read_text().splitlines() for folder in (tmp_path, FOLDER))
        # The version of the tools is in some lines; what counts is the descriptor.
        if name.endswith(".py"):
            made, kept = ([line for line in text if "AddSerializedFile" in line] for text in (made, kept))
        assert made == kept, "python -m tools.make_protocol"


def test_activations_in_all_forms() -> None:
    rng = np.random.default_rng(1)
    values = (rng.standard_normal((3, 40)) * 10.0 ** rng.integers(-3, 4, (3, 40))).astype(np.float32)
    assert np.array_equal(decode(encode(values, pb.F32), pb.F32, 3, 40), values)
    halves = decode(encode(values, pb.F16), pb.F16, 3, 40)
    assert np.array_equal(halves, values.astype(np.float16).astype(np.float32))
    brains = decode(encode(values, pb.BF16), pb.BF16, 3, 40)
    assert np.abs(brains / values - 1).max() <= 2.0**-8
    ties = np.array([[1 + 2.0**-8, 1 + 3 * 2.0**-8]], np.float32)  # between two: to the even one
    assert decode(encode(ties, pb.BF16), pb.BF16, 1, 2).tolist() == [[1.0, 1 + 2.0**-6]]
    large = np.array([[1e30, -1e30]], np.float32)
    assert decode(encode(large, pb.F16), pb.F16, 1, 2).tolist() == [[65504.0, -65504.0]]


def test_what_is_no_number_stays_none() -> None:
    """And what is infinite stays infinite: such errors must be seen where the logits are."""
    bits = [0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0x7FC00000, 0x7F800000, 0xFF800000]
    values = np.array([bits], np.uint32).view(np.float32)
    for form in (pb.F32, pb.F16, pb.BF16):
        got = decode(encode(values, form), form, 1, 6)
        assert np.isnan(got).tolist() == [[True] * 4 + [False] * 2]
        assert got[0, 4:].tolist() == [np.inf, -np.inf]


def test_batches_that_messages_have_no_room_for_are_refused() -> None:
    """The largest one that may be fits, with all that is said of it."""
    n, width, pages = 2048, 16384, 1 << 14
    check_tokens(n, width, pb.F32)
    numbers = np.zeros(n, np.int32)
    largest = Batch(numbers, numbers, numbers, numbers, numbers > 0, {0: np.zeros(pages, np.int32)})
    message = forward(largest, 1 << 40, 1 << 40, 3, True)
    message.activations = bytes(n * width * 4)
    assert message.ByteSize() <= LARGEST_MESSAGE
    assert message.ByteSize() <= forward_room(Limits(n, 1, 1, pages), n * width * 4).nbytes
    with pytest.raises(UsageError, match=r"^-ub 4096: workers take up to 20\d\d tokens of this model at a"):
        check_tokens(4096, width, pb.F32)
    check_tokens(4096, width, pb.BF16)


@pytest.mark.parametrize(("rows", "width"), [(3, 39), (2, 40), (4, 40), (0, 0)])
def test_other_sizes_are_refused(rows: int, width: int) -> None:
    with pytest.raises(ProtocolError, match=r"480 bytes came where \d x \d+ values"):
        decode(bytes(480), pb.F32, rows, width)


def a_batch() -> Batch:
    numbers = np.arange(5, dtype=np.int32)
    outputs = np.array([True, False, False, True, True])
    tables = {0: np.array([1, 0], np.int32), 2: np.array([1], np.int32)}
    return Batch(numbers + 40, numbers, np.full(5, 2, np.int32), numbers + 60, outputs, tables)


@pytest.mark.parametrize("first", [True, False])
def test_a_batch_comes_as_it_went(first: bool) -> None:
    sent = a_batch()
    data = pb.Request(forward=forward(sent, 1, 7, 0, first)).SerializeToString()
    got = batch(pb.Request.FromString(data).forward, BOUNDS, first)
    assert got.tokens.tolist() == (sent.tokens.tolist() if first else [0] * 5)
    for name in ("positions", "sequences", "slots", "outputs"):
        assert getattr(got, name).tolist() == getattr(sent, name).tolist()
    assert {s: pages.tolist() for s, pages in got.tables.items()} == {0: [1, 0], 2: [1]}


def numbers(*values: int) -> bytes:
    return np.array(values, "<i4").tobytes()


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"outputs": b""}, "a batch of 0 tokens"),
        ({"outputs": bytes(9)}, "a batch of 9 tokens"),
        ({"outputs": bytes([2, 0, 0, 0, 0])}, "not 0 or 1"),
        ({"outputs": bytes([1] * 5)}, "more than 4 logits"),
        ({"tokens": numbers(0, 1, 2, 3, 50)}, "one of the tokens is not from 0 to 49"),
        ({"tokens": numbers(0, 1, 2, 3)}, "16 bytes of tokens came where 5 numbers"),
        ({"positions": numbers(0, 1, 2, 3, 128)}, "one of the positions is not from 0 to 127"),
        ({"positions": numbers(0, 1, 2, 3, -1)}, "one of the positions"),
        ({"slots": numbers(0, 1, 2, 3, 128)}, "one of the slots"),
        ({"slots": b"\0" * 19}, "19 bytes of slots"),
        ({"sequences": numbers(0, 0, 0, 0, 3)}, "one of the sequences"),
        ({"tables": [pb.Table(sequence=3)]}, "sequence 3: there are 3"),
        ({"tables": [pb.Table(sequence=0, pages=numbers(2))]}, "one of the pages is not from 0 to 1"),
        ({"tables": [pb.Table(sequence=0, pages=numbers(0, 0, 0))]}, "12 bytes of pages"),
        ({"tables": [pb.Table()] * 4}, "tables of 4 sequences"),
    ],
)
def test_numbers_that_reach_too_far_are_refused(changes: dict[str, object], why: str) -> None:
    message = forward(a_batch(), 1, 7, 0, True)
    for name in changes:
        message.ClearField(name)
    message.MergeFrom(pb.Forward(**changes))  # type: ignore[arg-type]
    with pytest.raises(ProtocolError, match=why):
        batch(message, BOUNDS, True)


def test_tokens_are_for_the_embedding_alone() -> None:
    with pytest.raises(ProtocolError, match="tokens came for a part without the embedding"):
        batch(forward(a_batch(), 1, 7, 0, True), BOUNDS, False)


def test_texts_of_others_are_one_line() -> None:
    assert shown("a\n\x1b[2J b\t c" + "d" * 999) == "a ?[2J b c" + "d" * 289
