"""Two workers of which one pushes to the next: what becomes of it when one, or the client, goes away."""

import os
import re
import secrets
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from ggrun import LLM
from ggrun.bundled import demo_model
from ggrun.plan import Plan
from ggrun.rpc import ggrun_pb2 as pb
from ggrun.rpc import handoff
from ggrun.rpc.handoff import KEY, Handoff
from ggrun.rpc.placed import RpcOptions
from ggrun.rpc.remote import Remote
from tests.rpc.conftest import Start
from tests.rpc.processes import WorkerProcess, plan_of
from tests.waiting import ended, in_time, until

MODEL, HALVES = Path(demo_model()), 16
PROMPT = "The king ordered the"
Two = tuple[WorkerProcess, WorkerProcess]


@pytest.fixture(scope="module")
def want() -> str:
    with LLM(MODEL, n_ctx=256, threads=1) as llm:
        return text(llm)


@pytest.fixture
def two(start: Start) -> Two:
    return start("--insecure", name="a"), start("--insecure", name="b")


def plan(two: Two) -> Plan:
    a, b = two
    return plan_of(MODEL, ("cpu", 2), (a.device(), 8), (b.device(), HALVES))


def client(two: Two, told: list[str] | None = None) -> LLM:
    a, b = two
    rpc = RpcOptions(f"{a.address},{b.address}", insecure=1, tell=(told if told is not None else []).append)
    return LLM(MODEL, n_ctx=256, threads=1, plan=plan(two), rpc=rpc)


def pieces(llm: LLM) -> Iterator[str]:
    return llm.generate(PROMPT, temp=0.0, ignore_eos=True, max_tokens=60)


def text(llm: LLM) -> str:
    return "".join(pieces(llm))


def is_direct(llm: LLM) -> bool:
    _, first, second = llm._engine._pipeline._stages
    return first.pushes_to is second


@pytest.mark.parametrize("which", [0, 1])
def test_the_loss_of_one(which: int, two: Two, want: str) -> None:
    """The text goes on without it, and with the other one."""
    lost, other, told = two[which], two[1 - which], []
    with client(two, told) as llm:
        assert is_direct(llm)
        coming = pieces(llm)
        got = [next(coming) for _ in range(5)]
        lost.kill()
        got += list(coming)
        assert "".join(got) == want
        assert [line.partition(": ")[0] for line in told] == [lost.address]
        assert text(llm) == want
        assert lost.address not in llm.plan.to_json()
    until(lambda: other.has_its_memory)


def test_a_wrong_key(two: Two, want: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is pushed with it; results go by way of the client."""
    monkeypatch.setattr(Remote, "invite", lambda *_: secrets.token_bytes(32))
    with client(two) as llm:
        assert not is_direct(llm)
        assert text(llm) == want
    two[1].wait_for("refused: no such inbox")
    line = rf"no way to {two[1].address}: no such inbox, or too many of them are in use$"
    two[0].wait_for(line)


def test_only_tls_is_spoken_where_a_client_sends_a_worker() -> None:
    """Whatever answers there, nothing of the client's goes to it in plain text."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        heard: list[bytes] = []

        def listen() -> None:
            while b"end" not in heard:
                connection, _ = other.accept()
                with connection:
                    heard.append(connection.recv(3))
                    connection.sendall(b"220 mail\r\n")

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        message = pb.Handoff(address=address, key=bytes(32), fingerprint=bytes(32))
        assert not Handoff(message, 2, lambda _: None, lambda _: None).connect()
        with socket.create_connection(other.getsockname()) as last:
            last.sendall(b"end")
            ended([thread])
    assert heard == [b"\x16\x03\x01", b"end"]  # a ClientHello


def test_a_name_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker says in time that it finds no way, which is then by its client."""
    answers = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answers.wait() and [])
    monkeypatch.setattr(handoff, "ACROSS", 0.1)
    message = pb.Handoff(address="spare.example:50052", key=bytes(32), fingerprint=bytes(32))
    one = Handoff(message, 0, lambda _: None, lambda _: None)
    found: list[bool] = []
    in_time(lambda: found.append(one.connect()))
    answers.set()
    assert found == [False]


def test_strangers_at_an_inbox(two: Two, want: str) -> None:
    """Who has no key, or none that is good, pushes nothing: the text is right."""
    with client(two) as llm:
        coming = pieces(llm)
        got = [next(coming) for _ in range(5)]
        with grpc.insecure_channel(two[1].address) as channel:
            push = channel.stream_stream("/ggrun.Worker/Inbox", pb.Push.SerializeToString)
            for key in ([(KEY, secrets.token_bytes(32))], [(KEY, b"")], []):
                forged = (pb.Push(batch=batch, values=bytes(4096)) for batch in range(50))
                with pytest.raises(grpc.RpcError, match="no such inbox"):
                    next(push(forged, metadata=key))
        assert "".join([*got, *coming]) == want
        assert is_direct(llm)


def test_a_client_that_is_killed_in_the_middle(two: Two, want: str) -> None:
    """Both workers have their memory back, and the next client is served as if it had not been there."""
    a, b = two
    program = (
        "import sys; from pathlib import Path; from ggrun import LLM; from ggrun.plan import Plan\n"
        "from ggrun.rpc.placed import RpcOptions; model, rpc, plan = sys.argv[1:]\n"
        "llm = LLM(model, n_ctx=256, threads=1, plan=Plan.from_json(plan), rpc=RpcOptions(rpc, insecure=1))\n"
        "while True:\n"
        "    for piece in llm.generate('The king', temp=0.0): print(piece, flush=True)\n"
    )
    command = [sys.executable, "-c", program, str(MODEL), f"{a.address},{b.address}", plan(two).to_json()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ) as process:
        assert process.stdout
        for _ in range(5):
            assert process.stdout.readline()
        process.kill()
    for worker in two:
        worker.wait_for("has gone")
        assert "Traceback" not in worker.text
        assert worker.has_its_memory
    with client(two) as llm:
        assert is_direct(llm)
        assert text(llm) == want


def test_a_way_that_ends_is_a_line_at_most(two: Two, want: str) -> None:
    """None where the client goes; gRPC's own account of it has five."""
    with client(two) as llm:
        assert is_direct(llm)
        assert text(llm) == want
        # Before the other: of what ends at the same time, one worker may hear of the other's end first.
        llm._placed._workers.hosts[two[0].address].close()
    for worker in two:
        worker.wait_for("has gone")
    with client(two) as llm:
        assert is_direct(llm)
        two[1].kill()
        assert text(llm) == want
        lost = rf"the worker at {two[1].address} takes no more activations: \S.*$"
        two[0].wait_for(lost)
    two[0].end()
    dated = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d .*|ggrun worker: .*)")
    assert [line for line in two[0].lines if not dated.fullmatch(line)] == []
    assert two[0].text.count("takes no more activations") == 1
