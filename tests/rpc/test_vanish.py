"""Workers that vanish without a word, as machines that lose their power: nobody resets a connection."""

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import grpc
import pytest

from ggrun import LLM
from ggrun.bundled import demo_model
from ggrun.engine.hosts import HostLost
from ggrun.rpc import channel, keys, link, workers
from ggrun.rpc.link import Link
from ggrun.rpc.placed import RpcOptions
from ggrun.rpc.workers import connect
from tests.rpc.conftest import Start
from tests.rpc.processes import WorkerProcess, plan_of
from tests.waiting import PATIENCE, in_time, until

MODEL, HALVES = Path(demo_model()), 16
PROMPT = "The king ordered the"
SAMPLING = {"temp": 0.0, "ignore_eos": True, "max_tokens": 60}
LIMIT = 15.0
KEY = keys.Key(bytes(32), bytes(32))


@pytest.fixture(scope="module")
def want() -> str:
    with LLM(MODEL, n_ctx=256, threads=1) as llm:
        return "".join(llm.generate(PROMPT, **SAMPLING))


@pytest.fixture
def stop(start: Start) -> Iterator[Callable[[WorkerProcess], None]]:
    """Stops a worker: its system takes connections for it, and nobody answers."""
    stopped: list[WorkerProcess] = []

    def now(worker: WorkerProcess) -> None:
        stopped.append(worker)
        worker.process.send_signal(signal.SIGSTOP)

    yield now
    for worker in stopped:
        worker.kill()


def vanishing(there: list[WorkerProcess], vanish: Callable[[], None], want: str) -> tuple[float, list[str]]:
    """Seconds from the moment when all of them vanish in the middle of an answer to its next token.

    And the workers that are complained of, in the order of that.
    """
    told: list[str] = []
    ends = range(4, 4 + 4 * len(there), 4)
    stages = [(worker.device(), end) for worker, end in zip(there, ends, strict=True)]
    plan = plan_of(MODEL, *stages[:-1], (there[-1].device(), HALVES - 1), ("cpu", HALVES))
    insecure = int(there[0].key is None)
    rpc = RpcOptions(",".join(worker.address for worker in there), insecure, tell=told.append)
    with LLM(MODEL, n_ctx=256, threads=1, plan=plan, rpc=rpc) as llm:
        pieces = llm.generate(PROMPT, **SAMPLING)
        got = [next(pieces) for _ in range(5)]
        vanish()
        begun = time.monotonic()
        got.append(next(pieces))
        seconds = time.monotonic() - begun
        assert "".join([*got, *pieces]) == want
    assert all(
        line.endswith((" seconds: going on without it", " answer: going on without it")) for line in told
    )
    lost = [line.partition(": ")[0] for line in told]
    assert sorted(lost) == sorted(worker.address for worker in there)
    return seconds, lost


@pytest.mark.parametrize(
    "flags", [pytest.param(["--insecure"], id="plain", marks=pytest.mark.slow), pytest.param([], id="tls")]
)
def test_two_at_the_same_time(
    start: Start, stop: Any, want: str, flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is not known to be lost yet is asked once more, for a short time, and not twice."""
    there, asked = [start(*flags, name=name) for name in "ab"], list[tuple[str, float]]()

    class Asking(Link):
        def __init__(self, host: str, key: keys.Key | None, own: Any, timeout: float) -> None:
            asked.append((host, timeout))
            super().__init__(host, key, own, timeout)

    def vanish() -> None:
        for worker in there:
            stop(worker)
        # Only now: whoever is there may be slow to answer.
        monkeypatch.setattr(link, "SILENCE", 0.5)
        monkeypatch.setattr(link, "BEAT", 0.2)
        monkeypatch.setattr(workers, "AGAIN", 0.7)
        monkeypatch.setattr(workers, "Link", Asking)

    _, (_, other) = vanishing(there, vanish, want)
    assert asked == [(other, 0.7)]


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_text_goes_on_in_time(
    start: Start, stop: Any, want: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the seconds that users have."""
    monkeypatch.setattr(workers, "AGAIN", channel.AGAIN)
    there = [start("--insecure", name=f"w{i}") for i in range(count)]
    seconds, _ = vanishing(there, lambda: [stop(worker) for worker in there], want)
    print(f"{count} workers vanish: the next token comes after {seconds:.1f} s")
    assert seconds < LIMIT


@pytest.fixture
def mute() -> Iterator[Callable[..., str]]:
    """Makes addresses at which nobody answers: full ones drop what comes, others take connections."""
    with ExitStack() as stack:

        def made(*, full: bool, host: str = "127.0.0.1", port: int = 0) -> str:
            listener = stack.enter_context(socket.socket())
            listener.bind((host, port))
            listener.listen(0)
            for _ in range(4 if full else 0):  # the kernel answers no more when its queue is full
                waiting = stack.enter_context(socket.socket())
                waiting.setblocking(False)
                waiting.connect_ex(listener.getsockname())
            return f"{host}:{listener.getsockname()[1]}"

        yield made


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "tls"])
@pytest.mark.parametrize("full", [True, False])
def test_nobody_answers(
    mute: Callable[..., str], full: bool, key: keys.Key | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is not answered, the time is that of all together: no more to find out why."""
    monkeypatch.setattr(channel, "_LOOK", PATIENCE)
    address, begun = mute(full=full), time.monotonic()
    with pytest.raises(HostLost, match=f"^{address}: cannot be reached: it does not answer$"):
        Link(address, key, timeout=0.5)
    assert 0.4 < time.monotonic() - begun < PATIENCE / 3


def test_all_are_connected_at_the_same_time(
    mute: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first that was named is complained of."""
    addresses, together = [mute(full=full) for full in (True, False, True)], threading.Barrier(3)
    met: list[int] = []

    class Meeting(Link):
        def __init__(self, *args: Any) -> None:
            met.append(together.wait(PATIENCE))
            super().__init__(*args)

    monkeypatch.setattr(workers, "Link", Meeting)
    monkeypatch.setattr(workers, "TIMEOUT", 0.5)
    with pytest.raises(HostLost, match=f"^{addresses[0]}: cannot be reached: it does not answer$"):
        connect(",".join(addresses), insecure=1)
    assert sorted(until(lambda: met[2:] and met)) == [0, 1, 2]


def test_a_name_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    monkeypatch.setattr(workers, "TIMEOUT", 0.2)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: over.wait() and [])
    with pytest.raises(HostLost, match=r"^spare:50052: cannot be reached: it does not answer$"):
        in_time(lambda: connect("spare:50052", insecure=2))
    over.set()


def test_a_name_with_addresses_of_which_one_answers(
    start: Start, mute: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No address is waited for, neither by the first connection nor by gRPC's."""
    worker, resolve, plain = start("--insecure"), socket.getaddrinfo, grpc.insecure_channel
    tried: list[str] = []
    mute(full=True, host="127.0.0.2", port=worker.port)

    def several(host: str, port: int, **rest: Any) -> list[Any]:
        hosts = ["127.0.0.2", "127.0.0.4", "127.0.0.1"] if host == "spare.example" else [host]
        return [found for one in hosts for found in resolve(one, port, **rest)]

    begun = time.monotonic()
    monkeypatch.setattr(socket, "getaddrinfo", several)
    monkeypatch.setattr(workers, "TIMEOUT", 2 * PATIENCE)
    monkeypatch.setattr(grpc, "insecure_channel", lambda to, *rest: tried.append(to) or plain(to, *rest))
    with closing(connect(f"spare.example:{worker.port}", insecure=2)) as found:
        assert [device.label for device in found.devices]
    assert time.monotonic() - begun < PATIENCE / 3
    assert tried == [worker.address]
