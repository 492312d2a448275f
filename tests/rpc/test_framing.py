"""Messages in pieces, and those that are refused before they are there."""

from collections.abc import Iterator
from contextlib import ExitStack, closing
from itertools import repeat
from pathlib import Path

import pytest

from ggrun import LLM
from ggrun.bundled import demo_model
from ggrun.devices.base import Limits
from ggrun.plan.hardware import DeviceInfo
from ggrun.rpc import framing
from ggrun.rpc import ggrun_pb2 as pb
from ggrun.rpc.framing import PIECE, messages, split
from ggrun.rpc.placed import RpcOptions
from ggrun.rpc.wire import SMALL, ProtocolError, Room, forward_room
from ggrun.rpc.worker import WorkerOptions, open_worker
from tests.rpc.processes import plan_of
from tests.rpc.raw import field, number

ROOM = Room(16 << 20, 10)


def got(*pieces: bytes, room: Room = ROOM) -> list[tuple[str, object]]:
    return list(messages(pb.Request, pieces, lambda _: room))


def test_messages_come_as_they_went() -> None:
    """Whether they are small, just as large as a piece, a byte larger, or of many pieces."""
    beside = pb.Request(chunk=pb.Chunk(data=bytes(PIECE - 100))).ByteSize() - (PIECE - 100)
    sent = [pb.Chunk(tensor=3, offset=1 << 40, data=b"ab"), pb.Ping()]
    sent += [pb.Chunk(data=bytes(n - beside)) for n in (PIECE, PIECE + 1, 2 * PIECE, 2 * PIECE + 1)]
    requests = [pb.Request(**{type(m).__name__.lower(): m}) for m in sent]
    pieces = [piece for request in requests for piece in split(request)]
    assert [len(piece) for piece in pieces[2:]] == [PIECE, PIECE, 1, PIECE, PIECE, PIECE, PIECE, 1]
    assert got(*pieces) == [(type(m).__name__.lower(), m) for m in sent]


def test_a_text_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that two workers and a client say to each other is what it was."""
    monkeypatch.setattr(framing, "PIECE", 500)
    with LLM(demo_model(), n_ctx=64, threads=1, devices="cpu") as llm:
        want = "".join(llm.generate("The king and the queen", temp=0.0, max_tokens=8))
    device = DeviceInfo("cpu:0:1GB", 1 << 30, 1 << 30, 1e10, 1e11, 1e10, shared=False)
    with ExitStack() as stack:
        addresses = []
        for name in "ab":
            options = WorkerOptions(port=0, threads=1, insecure=1, cache_dir=tmp_path / name)
            server = stack.enter_context(closing(open_worker(options, [device], None)))
            addresses.append(f"127.0.0.1:{server.port}")
        first, second = (f"{address}/{device.name}" for address in addresses)
        plan = plan_of(Path(demo_model()), ("cpu", 4), (first, 8), (second, 16))
        rpc = RpcOptions(",".join(addresses), insecure=1)
        llm = stack.enter_context(LLM(demo_model(), n_ctx=64, threads=1, plan=plan, rpc=rpc))
        hops = llm._engine._pipeline._stages
        assert hops[1].pushes_to is hops[2]
        assert "".join(llm.generate("The king and the queen", temp=0.0, max_tokens=8)) == want


@pytest.mark.parametrize(
    "pieces",
    [
        [b""], [b"\xff" * 50], [b"\x0a"], [b"\x0a\xff"], [b"\x0a\x01"], [b"\x0a\x01ab"], [b"\x0b"],
        [b"\x08\x01"], [b"\x0a\x00\x12\x00"], [b"\x0a\x01\xff"], [b"\x72\x00"], [b"\x0a" + b"\x80" * 11],
        [field(4, bytes(PIECE))[:PIECE], b""], [field(4, bytes(PIECE))[:PIECE], bytes(9)],
        [field(4, bytes(PIECE))[:PIECE]], [field(4, bytes(PIECE))[:9], bytes(PIECE)],
        [field(5, field(9, b"") * 9 + b"\x7b\x7c" + field(4, bytes(SMALL.nbytes)))],
    ],
)  # fmt: skip
def test_what_is_no_message_is_refused(pieces: list[bytes]) -> None:
    with pytest.raises(ProtocolError, match=r"^what came is no message of ggrun$"):
        got(*pieces)


def test_a_large_one_is_refused_by_its_first_bytes() -> None:
    """Nothing more of it is waited for."""
    taken = 0

    def pieces() -> Iterator[bytes]:
        nonlocal taken
        yield b"\x22" + number(16 << 20 | 1) + bytes(100)
        for piece in repeat(bytes(PIECE)):
            taken += 1
            yield piece

    with pytest.raises(
        ProtocolError, match=r"^16777217 bytes of chunk came: up to 16777216 are possible now$"
    ):
        next(messages(pb.Request, pieces(), lambda _: ROOM))
    assert taken == 0


def test_fields_are_counted_before_they_take_memory() -> None:
    """Of any kind; those that a message has are no more than there may be, at their most."""
    limits = Limits(512, 8, 4, 100)
    room = forward_room(limits, 4 * 512 * 64)
    full = pb.Forward(
        run=1 << 63, batch=1 << 63, part=(1 << 32) - 1, tokens=bytes(2048), positions=bytes(2048),
        sequences=bytes(2048), slots=bytes(2048), outputs=bytes(512), activations=bytes(4 * 512 * 64),
        tables=[pb.Table(sequence=(1 << 32) - 1, pages=bytes(400))] * 4, pushed=1 << 63, top=128,
        words=1 << 31,
    )  # fmt: skip
    assert SMALL.nbytes < full.ByteSize() <= room.nbytes
    assert got(*split(pb.Request(forward=full)), room=room) == [("forward", full)]
    for empty in (field(9, b""), b"\x08\x01", b"\x09" + bytes(8), b"\x0d" + bytes(4)):
        many = field(5, empty * (room.nbytes // len(empty)))
        with pytest.raises(ProtocolError, match=r"^more than 20 fields of forward came$"):
            got(many, room=room)
