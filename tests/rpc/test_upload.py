"""What a client sends to a worker that misses weights, and what it does not."""

from pathlib import Path
from typing import Any

import pytest

from ggrun.rpc import ggrun_pb2 as pb
from ggrun.rpc.upload import Upload
from ggrun.rpc.wire import ProtocolError
from tests.rpc.script import Script
from tests.rpc.test_fuzz import FakeLink, welcome
from tests.waiting import until


class Kept(FakeLink):
    """Keeps the chunks that are sent."""

    def __init__(self) -> None:
        super().__init__(welcome())
        self.chunks: list[pb.Chunk] = []

    def send(self, **kind: Any) -> None:
        self.sent += 1
        if "chunk" in kind:
            self.chunks.append(kind["chunk"])

    def miss(self, tensor: int, offset: int) -> None:
        self.handlers["missing"](pb.Missing(wants=[pb.Want(tensor=tensor, offset=offset)]))

    def data(self, tensor: int) -> bytes:
        return b"".join(chunk.data for chunk in self.chunks if chunk.tensor == tensor)


@pytest.fixture
def script(path: Path) -> Script:
    return Script(path)


@pytest.fixture
def link(script: Script) -> Kept:
    link = Kept()
    upload = Upload(link, lambda *_: None)  # type: ignore[arg-type]
    upload.begin(script.plan, [range(1, 2)], script.model, script.cache, script.limits, 3, pb.F32)
    until(lambda: link.sent, "Open")
    return link


def test_what_began_wrongly_is_sent_again_as_a_whole(script: Script, link: Kept) -> None:
    """Once: a worker cannot have a tensor sent without end."""
    data = list(script.model.tensors.values())[3].data.tobytes()
    link.miss(3, 8)
    until(lambda: link.data(3) == data[8:], "the end of the tensor")
    link.miss(3, 0)
    until(lambda: link.data(3) == data[8:] + data, "the tensor")
    with pytest.raises(ProtocolError, match=r"^w: the worker asks for weights twice$"):
        link.miss(3, 0)


@pytest.mark.parametrize(("first", "second"), [(0, 0), (0, 8), (8, 8), (8, 4)])
def test_nothing_else_is_sent_twice(first: int, second: int, link: Kept) -> None:
    link.miss(3, first)
    with pytest.raises(ProtocolError, match=r"^w: the worker asks for weights twice$"):
        link.miss(3, second)


@pytest.mark.parametrize(("tensor", "offset"), [(3, 1 << 40), (1 << 20, 0)])
def test_what_there_is_not_is_not_sent(tensor: int, offset: int, link: Kept) -> None:
    with pytest.raises(ProtocolError, match=r"^w: the worker wants a tensor that there is not$"):
        link.miss(tensor, offset)


def test_wants_that_come_one_by_one(script: Script, link: Kept) -> None:
    """And ready is what ends the load, not the last of them."""
    tensors = [tensor.data.tobytes() for tensor in script.model.tensors.values()]
    for i in (2, 3):
        link.miss(i, 0)
        until(lambda i=i: link.data(i) == tensors[i], "the tensor")
