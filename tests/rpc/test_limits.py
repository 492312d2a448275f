"""Messages of many megabytes, or that would take gigabytes: neither memory nor others' time is theirs."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import repeat
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import grpc
import psutil
import pytest

from ggrun import LLM
from ggrun.bundled import demo_model
from ggrun.errors import GgrunError
from ggrun.rpc import PROTOCOL
from ggrun.rpc import ggrun_pb2 as pb
from ggrun.rpc.framing import PIECE
from ggrun.rpc.handoff import KEY
from ggrun.rpc.link import Link
from ggrun.rpc.placed import RpcOptions
from ggrun.rpc.remote import Remote
from tests.rpc.conftest import Start
from tests.rpc.processes import plan_of
from tests.rpc.raw import field, number
from tests.rpc.script import Script
from tests.waiting import PATIENCE

MOST = 200 << 20
"""Bytes that a process may grow by: half of it are buffers, when others have the processors."""
HUGE = 240 << 20
HELLO = pb.Request(hello=pb.Hello(protocol=PROTOCOL)).SerializeToString()


@contextmanager
def held(pid: int | None = None) -> Iterator[None]:
    """A process does not grow by more than it may, not even for a moment."""
    process, stop = psutil.Process(pid), threading.Event()
    before = peak = process.memory_info().rss

    def watch() -> None:
        nonlocal peak
        while not stop.wait(0.005):
            peak = max(peak, process.memory_info().rss)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    print(f"{(peak - before) / 2**20:+.1f} MiB at most")
    assert peak - before < MOST


def attack(address: str, *messages: bytes, way: str = "Session", key: bytes = b"") -> str:
    """What a worker says last to a client that sends these bytes."""
    with grpc.insecure_channel(address, [("grpc.max_send_message_length", -1)]) as channel:
        call = channel.stream_stream(f"/ggrun.Worker/{way}")(
            iter(messages), timeout=PATIENCE, metadata=[(KEY, key)] if key else []
        )
        try:
            *_, last = call
        except grpc.RpcError as error:
            return str(error.details())  # type: ignore[attr-defined]
        return pb.Reply.FromString(last).failed.text


def announced(place: int) -> list[bytes]:
    """A message of a kind that begins as a huge one does, and goes on."""
    rest = repeat(bytes(PIECE), HUGE // PIECE)
    return [(bytes([place << 3 | 2]) + number(HUGE)).ljust(PIECE, b"\0"), *rest]


TENSOR, EMPTY = 4, b""
ATTACKS: dict[str, Callable[[], list[bytes]]] = {
    "larger than max": lambda: [field(3, field(TENSOR, EMPTY) * (HUGE // 4))],
    f"{HUGE} bytes of open came: up to 2097152": lambda: announced(3),
    f"{HUGE} bytes of forward came: up to 65536": lambda: announced(5),
    f"{HUGE} bytes of ping came: up to 1048576": lambda: announced(2),
    "more than 16640 fields of open": lambda: [field(3, field(TENSOR, EMPTY) * (1 << 19))],
    "tensor 'a' has": lambda: [field(3, field(TENSOR, field(1, b"a") + field(2, b"\1" * (2_000_000))))],
    "the metadata are no object": lambda: [field(3, field(3, b"[" + b"{}," * 600_000 + b"{}]"))],
}
"""What comes after Hello, by what is said of it."""


def test_a_worker_grows_by_little_and_others_go_on(start: Start) -> None:
    worker, told = start("--insecure"), []
    rpc = RpcOptions(worker.address, insecure=1, tell=told.append)
    plan = plan_of(demo_model(), ("cpu", 4), (worker.device(), 16))
    with LLM(demo_model(), n_ctx=64, threads=1, plan=plan, rpc=rpc) as llm:

        def text() -> str:
            return "".join(llm.generate("The king", temp=0.0, max_tokens=24))

        want = text()
        said: list[tuple[str, str]] = []

        def hostile() -> None:
            said.extend((why, attack(worker.address, HELLO, *data())) for why, data in ATTACKS.items())
            said.append((f"{HUGE} bytes of hello came", attack(worker.address, *announced(1))))

        with held(worker.process.pid):
            thread = threading.Thread(target=hostile, daemon=True)
            thread.start()
            rounds = 0
            while thread.is_alive() or not rounds:
                assert text() == want
                rounds += 1
    assert told == []  # nor was it silent for so long that it was taken for lost
    assert len(said) == len(ATTACKS) + 1
    for why, answer in said:
        assert why in answer
        assert len(answer.splitlines()) == 1
        if "larger than max" not in answer:  # gRPC's own word
            worker.wait_for(f"refused: {why}")


def test_a_worker_takes_no_more_than_it_has_opened(start: Start, path: Path) -> None:
    """Of batches and of chunks; and another worker may push no more into its inbox."""
    worker = start("--insecure", "-d", "cpu:0:64MB", "--models", str(path.parent))
    loads = [HELLO, pb.Request(open=Script(path).open).SerializeToString()]

    def after_ready(message: Callable[[pb.Reply], list[bytes]], **asked: Any) -> str:
        """What is said to a message that follows a reply."""
        requests: SimpleQueue[bytes] = SimpleQueue()
        with grpc.insecure_channel(worker.address) as channel:
            call = channel.stream_stream("/ggrun.Worker/Session")(iter(requests.get, b""), timeout=PATIENCE)
            for request in loads:
                requests.put(request)
            for data in call:
                reply = pb.Reply.FromString(data)
                if reply.HasField("ready") and asked:
                    requests.put(pb.Request(**asked).SerializeToString())
                elif reply.HasField("failed"):
                    break
                elif not reply.HasField("welcome"):
                    for piece in message(reply):
                        requests.put(piece)
            requests.put(b"")
        return reply.failed.text

    with held(worker.process.pid):
        assert f"{HUGE} bytes of forward came: up to " in after_ready(lambda _: announced(5))
        assert f"{HUGE} bytes of chunk came: up to 4259840" in after_ready(lambda _: announced(4))
        pushed: list[str] = []

        def push(reply: pb.Reply) -> list[bytes]:
            key = reply.invited.key
            pushed.append(attack(worker.address, *announced(1), way="Inbox", key=key))
            return announced(1)

        after_ready(push, invite=pb.Invite())
    assert f"{HUGE} bytes of push came: up to " in pushed[0]
    worker.wait_for(f"refused: {HUGE} bytes of push came: up to ")


# ---------------------------------------------------------------- a hostile worker


@contextmanager
def hostile_worker(reply: Callable[[], Iterator[bytes]], to: str) -> Iterator[str]:
    """The address of one that gives this reply to a kind of request, and is honest before."""

    def session(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        for data in requests:
            request = pb.Request.FromString(data)
            if request.WhichOneof("kind") == to:
                yield from reply()
            elif request.HasField("hello"):
                device = pb.Device(name="cpu", memory=1, free=1, bandwidth=1e10, operations=1e11)
                yield pb.Reply(welcome=pb.Welcome(protocol=PROTOCOL, devices=[device])).SerializeToString()
            elif request.HasField("ping"):
                yield pb.Reply(pong=pb.Pong(number=request.ping.number)).SerializeToString()

    handlers = {"Session": grpc.stream_stream_rpc_method_handler(session)}
    server = grpc.server(ThreadPoolExecutor(2), options=[("grpc.max_send_message_length", -1)])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("ggrun.Worker", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.mark.parametrize(
    ("to", "reply", "why"),
    [
        ("hello", lambda: announced(1), f"{HUGE} bytes of welcome came: up to 65536 are possible now"),
        (
            "hello",
            lambda: [field(1, bytes([8, PROTOCOL]) + field(3, b"") * 30_000)],
            "too many devices, or one twice",
        ),
        ("ping", lambda: announced(2), f"{HUGE} bytes of pong came: up to 65536"),
        ("open", lambda: announced(3), f"{HUGE} bytes of missing came: up to "),
        ("open", lambda: announced(4), f"{HUGE} bytes of received came: up to 65536"),
        ("open", lambda: announced(5), f"{HUGE} bytes of ready came: up to "),
        ("open", lambda: announced(6), f"{HUGE} bytes of result came: up to "),
        ("open", lambda: announced(7), f"{HUGE} bytes of failed came: up to 65536"),
    ],
    ids=["welcome", "devices", "pong", "missing", "received", "ready", "result", "failed"],
)
def test_a_client_grows_by_little(path: Path, to: str, reply: Callable[[], list[bytes]], why: str) -> None:
    script = Script(path)

    def load(address: str) -> None:
        with closing(Remote(Link(address, None), pb.F32)) as remote:
            remote.begin(script.plan, [range(1, 2)], script.model, script.cache, script.limits, 3)
            remote.finish()

    with hostile_worker(lambda: iter(reply()), to) as address, held(), pytest.raises(GgrunError) as caught:
        load(address)
    assert str(caught.value).startswith(f"{address}: ")
    assert why in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
