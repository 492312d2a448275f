"""A worker that answers, but does nothing: it has an end too."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest

from ggrun import LLM, Interrupted
from ggrun.bundled import demo_model
from ggrun.engine.hosts import HostLost
from ggrun.errors import GgrunError
from ggrun.plan.hardware import CARD_EFFICIENCY, CARD_HALF_LAYER, DeviceInfo
from ggrun.rpc import PROTOCOL, remote, server, session, upload
from ggrun.rpc import ggrun_pb2 as pb
from ggrun.rpc.link import Link
from ggrun.rpc.offered import devices_of
from ggrun.rpc.placed import RpcOptions
from ggrun.rpc.worker import WorkerOptions, open_worker
from tests.rpc.conftest import Start
from tests.rpc.processes import plan_of
from tests.rpc.proxy import Proxy
from tests.tiny import Tiny
from tests.waiting import PATIENCE, ended

MODEL, HALVES = Path(demo_model()), 16


def test_a_batch_that_never_comes(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    worker, told = start("--insecure"), []
    plan = plan_of(MODEL, ("cpu", 4), (worker.device(), HALVES))
    rpc = RpcOptions(worker.address, insecure=1, tell=told.append)
    with LLM(MODEL, n_ctx=64, threads=1, plan=plan, rpc=rpc) as llm:
        want = "".join(llm.generate("The king", temp=0.0, max_tokens=8))
        monkeypatch.setattr(remote, "PATIENCE", 0.5)
        link = llm._placed._workers.hosts[worker.address].link
        monkeypatch.setattr(link, "send", lambda **_: None)
        assert "".join(llm.generate("The king", temp=0.0, max_tokens=8)) == want
    assert "has given nothing for 0 seconds: going on without it" in told[0]


def test_an_interrupt_ends_a_text_whose_results_never_come(start: Start) -> None:
    """And the worker is used again."""
    worker, told, ends = start("--insecure"), [], []
    plan = plan_of(MODEL, ("cpu", 4), (worker.device(), HALVES))
    rpc = RpcOptions(worker.address, insecure=1, tell=told.append)
    with LLM(MODEL, n_ctx=64, threads=1, plan=plan, rpc=rpc) as llm:
        want = "".join(llm.generate("The king", temp=0.0, max_tokens=8))
        handlers, dropped = llm._placed._workers.hosts[worker.address].link._handlers, threading.Event()
        take, handlers["result"] = handlers["result"], lambda _: dropped.set()

        def generate() -> None:
            try:
                ends.extend(llm.generate("The queen", temp=0.0, max_tokens=8))
            except Interrupted as error:
                ends.append(error)

        thread = threading.Thread(target=generate, daemon=True)
        thread.start()
        assert dropped.wait(PATIENCE)
        llm.interrupt()
        ended([thread])
        assert [type(end) for end in ends] == [Interrupted]
        handlers["result"] = take
        assert "".join(llm.generate("The king", temp=0.0, max_tokens=8)) == want
        assert worker.address in llm.plan.to_json()
    assert told == []


def a_long_prompt(path: Path, address: str, begins: Callable[[], None] = lambda: None) -> None:
    """Its activations take a second and a half or more to a worker, which is not lost meanwhile."""
    told: list[str] = []
    plan = plan_of(path, ("cpu", 2), (f"{address}/cpu:0:1GB", 4))
    rpc = RpcOptions(address, insecure=1, tell=told.append)
    with LLM(path, n_ctx=1024, n_ubatch=1024, threads=1, plan=plan, rpc=rpc) as llm:
        begins()
        begun = time.monotonic()
        next(llm.generate_tokens([1] * 1000, temp=0.0))
        assert time.monotonic() - begun > 1.5
        assert told == []


def test_a_slow_network_is_no_silence(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer to a ping waits behind 4 MiB of activations, for longer than a worker may be silent."""

    def begins() -> None:  # while it loads, the machine may be busy with other things
        monkeypatch.setattr("ggrun.rpc.link.SILENCE", 1.0)
        monkeypatch.setattr("ggrun.rpc.link.BEAT", 0.2)

    path = Tiny(layers=2, width=1024, heads=8, context=1024).write(tmp_path / "model.gguf")
    worker = start("--insecure", "--models", str(tmp_path))
    with Proxy(worker.port, pace=0.04) as proxy:
        a_long_prompt(path, proxy.address, begins)


def test_nor_is_it_one_to_the_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Activations take longer to come than a client may be silent: it is not thrown out."""
    opens = session.Session._take_open

    def opened(self: session.Session, message: pb.Open) -> None:  # before, the client plans: without a word
        monkeypatch.setattr(session, "SILENCE", 0.5)
        opens(self, message)

    monkeypatch.setattr(session.Session, "_take_open", opened)
    monkeypatch.setattr(session, "SLOWEST", 1 << 17)
    monkeypatch.setattr(server, "_LOOK", 0.05)
    path = Tiny(layers=2, width=1024, heads=8, context=1024).write(tmp_path / "model.gguf")
    device = DeviceInfo("cpu:0:1GB", 1 << 30, 1 << 30, 1e10, 1e11, 1e10, shared=False)
    options = WorkerOptions(port=0, threads=1, insecure=1, models=tmp_path, cache_dir=tmp_path)
    there = open_worker(options, [device], None)
    with Proxy(there.port, pace=0.03) as proxy, closing(there):
        a_long_prompt(path, proxy.address)


@pytest.mark.parametrize("flags", [["--insecure"], []])
def test_proxies_for_the_web_are_not_asked(
    start: Start, flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither on the way to a worker, nor from one to the next."""
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    a, b = start(*flags, name="a"), start(*flags, name="b")
    plan = plan_of(MODEL, (a.device(), 8), (b.device(), HALVES))
    rpc = RpcOptions(f"{a.address},{b.address}", insecure=len(flags))
    with LLM(MODEL, n_ctx=64, threads=1, plan=plan, rpc=rpc) as llm:
        first, second = llm._engine._pipeline._stages
        assert first.pushes_to is second
        assert "".join(llm.generate("The king", temp=0.0, max_tokens=8))


def test_a_load_that_never_ends(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    worker, told = start("--insecure"), []
    plan = plan_of(MODEL, ("cpu", 4), (worker.device(), HALVES))
    monkeypatch.setattr(upload, "PATIENCE", 0.5)
    monkeypatch.setattr(Link, "send", silent(Link.send))
    rpc = RpcOptions(worker.address, insecure=1, tell=told.append)
    with LLM(MODEL, n_ctx=64, threads=1, plan=plan, rpc=rpc) as llm:
        assert worker.address not in llm.plan.to_json()
    assert "has loaded nothing for 0 seconds: going on without it" in told[0]


def silent(send):
    """Sends all but Open."""

    def sent(self: Link, **kind: object) -> None:
        if "open" not in kind:
            send(self, **kind)

    return sent


def test_a_link_that_was_closed_says_so(start: Start) -> None:
    worker = start("--insecure")
    link = Link(worker.address, None)
    latency, bandwidth = link.measure()
    assert 0 < latency < 10
    assert bandwidth > 1e4
    ends: list[str] = []
    link.on_end(lambda error: ends.append(str(error)))
    link.close()
    link.on_end(lambda error: ends.append(str(error)))
    assert ends == [f"{worker.address}: the connection is closed"] * 2
    with pytest.raises(GgrunError, match="the connection is closed"):
        link.measure()
    assert not isinstance(link.error, HostLost)


@pytest.mark.parametrize(
    "wrong",
    [
        {"bandwidth": 1e-300}, {"bandwidth": float("nan")}, {"operations": 0.0}, {"link": float("inf")},
        {"unpacked": -1.0}, {"free": 1 << 61}, {"name": "tpu:0"}, {"name": "cpu\x1b[2J"},
    ],
)  # fmt: skip
def test_devices_that_cannot_be(wrong: dict[str, object]) -> None:
    right = {"name": "cpu:0:1GB", "memory": 1, "free": 1, "bandwidth": 1e10, "operations": 1e11}
    assert devices_of("w", pb.Welcome(devices=[pb.Device(**right)]), 1e-4, 1e9)[0].name == "w/cpu:0:1GB"
    (card,) = devices_of("w", pb.Welcome(devices=[pb.Device(**{**right, "name": "cuda:0"})]), 1e-4, 1e9)
    assert (card.efficiency, card.half_layer) == (CARD_EFFICIENCY, CARD_HALF_LAYER)
    with pytest.raises(GgrunError) as caught:
        devices_of("w", pb.Welcome(devices=[pb.Device(**{**right, **wrong})]), 1e-4, 1e9)
    assert str(caught.value).isprintable()
    with pytest.raises(GgrunError, match="too many devices, or one twice"):
        devices_of("w", pb.Welcome(devices=[pb.Device(**right)] * 2), 1e-4, 1e9)


def test_what_comes_late_does_not_end_the_farewell(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who closes waits for the worker's end of the session, whatever it had still to say."""
    monkeypatch.setattr("ggrun.rpc.link._FAREWELL", 10 * PATIENCE)
    freed = threading.Event()

    def session(requests: Iterator[bytes], context: Any) -> Iterator[pb.Reply]:
        next(requests)
        yield pb.Reply(welcome=pb.Welcome(protocol=PROTOCOL, version="0.1.0"))
        for _ in requests:  # until the client leaves
            pass
        yield pb.Reply(result=pb.Result(run=1, batch=7, values=bytes(4)))  # nobody waits for it
        time.sleep(0.3)
        freed.set()

    handler = grpc.stream_stream_rpc_method_handler(session, None, pb.Reply.SerializeToString)
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("ggrun.Worker", {"Session": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    link = Link(f"127.0.0.1:{port}", None)
    link.close()
    assert freed.is_set()
    server.stop(None)
