"""A worker that lends cards: emulated ones, by CuPy's calls, or with streams that run late."""

import gc
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from shutil import which
from typing import Any

import numpy as np
import pytest

import ggrun.devices
from ggrun import LLM, Interrupted
from ggrun.devices import kept, local
from ggrun.devices.cuda import local as local_cards
from ggrun.devices.cuda import selftest
from ggrun.devices.cuda.device import Cuda
from ggrun.devices.cuda.found import Cards
from ggrun.devices.cuda.selftest import Check, Outcome
from ggrun.devices.late import Schedule
from ggrun.devices.names import DeviceName
from ggrun.engine.hosts import HostLost
from ggrun.errors import GgrunError, UsageError
from ggrun.gguf import GGUF
from ggrun.plan import Plan
from ggrun.plan.hardware import Speeds
from ggrun.rpc.placed import RpcOptions
from ggrun.rpc.server import Server
from ggrun.rpc.worker import WorkerOptions, offered, open_worker
from ggrun.rpc.workers import connect
from tests.cuda.fake_cupy import FakeCupy
from tests.engine.test_peer import distance
from tests.kept import nothing_known
from tests.plans import Plans
from tests.rpc.conftest import Start
from tests.rpc.processes import plan_of
from tests.tiny import Tiny
from tests.waiting import PATIENCE, ended, in_time, until
from tools.cuda_emulator.build import compiler
from tools.cuda_emulator.driver import EmulatedDriver

PROMPT = [7 * i % 5000 for i in range(12)]
Serve = Callable[..., Server]


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeCupy]:
    """Two cards, which copy to each other."""
    if not which(compiler()):
        pytest.skip(f"the emulator needs {compiler()}")
    fake = FakeCupy()
    monkeypatch.setitem(sys.modules, "cupy", fake)  # type: ignore[arg-type]
    monkeypatch.setattr(local_cards, "_card_speeds", lambda *_: Speeds(1e12, 1e13, 1e13, 1e10))
    monkeypatch.setattr(local, "measured_cpu", lambda *_: Speeds(1e10, 1e11, 1e11))
    monkeypatch.setattr(selftest, "run", known)
    monkeypatch.setattr(kept, "cache_home", lambda: tmp_path / "kept")
    nothing_known(monkeypatch)
    Cards.found.cache_clear()
    yield fake
    Cards.found.cache_clear()


def known(checks: Sequence[Check], opener: str) -> list[Outcome]:
    """Cards that copy directly, and sum without NCCL."""
    both_ways = [{"bandwidth": 1e9, "latency": 1e-5}] * 2
    found = {
        "direct copies": both_ways,
        "copies through the host": both_ways,
        "sums by copies": [[4096, 1e-5]],
    }
    return [Outcome(check, found.get(check.name), "" if check.name in found else "none") for check in checks]


@pytest.fixture(params=["cupy", "late"])
def kind(request: pytest.FixtureRequest, cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch) -> str:
    """Cards whose work is done at once, or late and in any order."""
    if request.param == "late":
        schedule = Schedule(3)

        def late(name: DeviceName, uploaded: Any) -> Cuda:
            driver = EmulatedDriver(schedule=schedule, name=name.short)
            return Cuda(driver, name.short, name.limit, uploaded=uploaded)

        def connect(cards: dict[str, int], devices: dict[str, Any], p2p: str) -> None:
            for one in cards:
                for other in cards.keys() - {one}:
                    devices[one].connect(devices[other], direct=True)

        monkeypatch.setattr(ggrun.devices, "_cuda", late)
        monkeypatch.setattr(ggrun.devices, "_connect", connect)
    return str(request.param)


@pytest.fixture
def serve(cupy: FakeCupy, tmp_path: Path) -> Iterator[Serve]:
    """Starts a worker in this process, which the client talks to through real sockets."""
    started: list[Server] = []

    def make(devices: str) -> Server:
        options = WorkerOptions(port=0, insecure=1, threads=1, cache_dir=tmp_path / "cache")
        started.append(open_worker(options, offered(devices, 1, margin=0), None))
        return started[-1]

    yield make
    for server in started:
        server.close()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose vocabulary is more than a block of a card looks at."""
    return Tiny(layers=3, vocab=5000).write(tmp_path_factory.mktemp("cards") / "model.gguf")


def address(worker: Server) -> str:
    return f"127.0.0.1:{worker.port}"


def client(worker: Server, path: Path, **where: Any) -> LLM:
    return here(path, rpc=RpcOptions(address(worker), insecure=1, tell=pytest.fail), **where)


def here(path: Path, **where: Any) -> LLM:
    """A model on devices that compute what they hold, and nothing of another's."""
    return LLM(path, n_ctx=64, n_ubatch=8, threads=1, fit_margin=0, op_offload=False, **where)


def tokens(llm: LLM, n: int = 5, prompt: list[int] = PROMPT, **sampling: Any) -> list[int]:
    made = llm.generate_tokens(prompt, temp=0.0, **sampling)
    return [next(made) for _ in range(n)]


def answers(llm: LLM) -> tuple[Any, list[int], list[int]]:
    """All logits of a prompt; tokens by the best logits; by all of them, which a penalty looks at."""
    return llm.logits(PROMPT), tokens(llm), tokens(llm, repeat_penalty=1.3)


def no_clients(worker: Server) -> None:
    until(lambda: worker.sessions == 0, "the end of the sessions")


def test_all_layers_on_a_card(kind: str, serve: Serve, path: Path) -> None:
    """As `--rpc HOST:PORT --devices cpu -ngl 99` has it: with the bits of a card that is here."""
    worker = serve("cuda:0")
    with here(path, devices="cuda:0,cpu", n_gpu_layers=99) as llm:
        want = answers(llm)
    with client(worker, path, devices="cpu", n_gpu_layers=99) as llm:
        first, last = llm.plan.stages
        assert (first.members[0].device, first.halves) == ("cpu", (0, 0))
        assert last.members[0].device == f"{address(worker)}/cuda:0"
        got = answers(llm)
    assert np.array_equal(got[0], want[0])
    assert got[1:] == want[1:]


@pytest.mark.parametrize("layers", ["layer 2", "row 2", "experts", "everything", "row inside layer"])
def test_several_devices_of_a_worker(layers: str, kind: str, serve: Serve, path: Path) -> None:
    """Cards that follow each other or share rows, and the worker's CPU: as they do here."""
    names = ("cuda:0", "cuda:1", "cpu", "cpu:1:64MB")
    worker = serve(",".join(names))

    def plan(names: tuple[str, ...]) -> Plan:
        return Plans(GGUF(path), names)[layers]

    with here(path, plan=plan(names)) as llm:
        want = answers(llm)
    there = tuple(f"{address(worker)}/{name}" for name in names)
    with client(worker, path, plan=plan(there)) as llm:
        got = answers(llm)
    assert np.array_equal(got[0], want[0])
    assert got[1:] == want[1:]


def test_cards_of_the_same_name_here_and_there(kind: str, serve: Serve, path: Path) -> None:
    """A worker's card is none of this machine: what is known of that one's memory and links is not its."""
    worker = serve("cuda:0,cuda:1")
    with here(path, devices="cuda:0,cuda:1,cpu", n_gpu_layers=99) as llm:
        want = answers(llm)
    there = [f"{address(worker)}/cuda:{i}" for i in range(2)]
    # The embedding; three half layers and two cards of each machine, by turns.
    order = ("cpu", there[0], "cuda:0", there[1], "cuda:1")
    with client(worker, path, plan=plan_of(path, *zip(order, (0, 1, 2, 4, 6), strict=True))) as llm:
        assert llm._placed.devices.keys() == {"cpu", "cuda:0", "cuda:1"}
        got = answers(llm)
    assert np.array_equal(got[0], want[0])
    assert got[1:] == want[1:]
    options = {"devices": "cuda:0,cuda:1,cpu", "n_gpu_layers": 99, "tensor_split": (1, 1, 1, 1)}
    with client(worker, path, **options) as llm:
        named = {device.name: device for device in llm.planned.devices}
        assert {m.device for stage in llm.plan.stages for m in stage.members} == named.keys()
        assert named["cuda:0"].link_to(named["cuda:1"])
        assert not named[there[0]].link_to(named["cuda:1"])
        assert answers(llm)[1:] == want[1:]
    with pytest.raises(UsageError, match="needs one machine"):
        client(worker, path, devices="cuda:0,cpu", split_mode="row", order=(there[0], "cuda:0"))


def test_rows_over_the_cards_of_a_worker_are_planned(kind: str, serve: Serve, path: Path) -> None:
    worker = serve("cuda:0,cuda:1")
    rows = {"n_gpu_layers": 99, "split_mode": "row", "tensor_split": (1, 1)}
    with here(path, devices="cuda:0,cuda:1,cpu", **rows) as llm:
        want = tokens(llm)
    with client(worker, path, devices="cpu", **rows) as llm:
        last = llm.plan.stages[-1]
        assert [m.device for m in last.members] == [f"{address(worker)}/cuda:{i}" for i in range(2)]
        assert tokens(llm) == want


def test_groups_of_rows_go_with_the_cards_that_are_lost(serve: Serve, path: Path) -> None:
    """What was said of them is not said of what is left, which may share rows as ever."""
    worker, told = serve("cuda:0,cuda:1"), list[str]()
    rpc = RpcOptions(address(worker), insecure=1, tell=told.append)
    rows: dict[str, Any] = {"n_gpu_layers": 99, "split_mode": "row", "row_groups": (2, 2)}
    with here(path, devices="cuda:0,cuda:1,cpu", rpc=rpc, **rows) as llm:
        llm._placed.without(HostLost(address(worker), "it is gone"))
        assert llm.planned.options.split_mode == "row"
    assert told[-1] == f"{address(worker)}: it is gone: going on without it"


def test_an_interrupt_ends_one_text_and_not_the_next(kind: str, serve: Serve, path: Path) -> None:
    worker = serve("cuda:0,cpu")
    there = [f"{address(worker)}/{name}" for name in ("cuda:0", "cpu")]
    with client(worker, path, plan=plan_of(path, ("cpu", 1), (there[0], 4), (there[1], 6))) as llm:
        want = tokens(llm)
        for _ in range(5):
            made = llm.generate_tokens(PROMPT, temp=0.0)
            next(made)
            llm.interrupt()
            with pytest.raises(Interrupted):
                next(made)
            assert tokens(llm) == want
        # From another thread, at any moment of a long prompt.
        for _ in range(5):
            timer = threading.Timer(0.02, llm.interrupt)
            timer.start()
            with suppress(Interrupted):
                llm.logits([i % 5000 for i in range(60)])
            timer.join()
            assert tokens(llm) == want


@pytest.mark.parametrize("number", [0, 1])
def test_a_card_that_fails_in_a_run(number: int, kind: str, serve: Serve, path: Path) -> None:
    """The first one, or the one with the output: the client is told, and its next text is right."""
    worker = serve("cuda:0,cuda:1")
    with client(worker, path, devices="cpu", n_gpu_layers=99, tensor_split=(1, 1)) as llm:
        want = tokens(llm)
        (session,) = worker._sessions
        card = session._devices[f"cuda:{number}"]
        for _ in range(2):
            card.stream.enqueue(fails)  # as sums by NCCL do that are given up, too
            with pytest.raises(GgrunError, match="this card does not"):
                tokens(llm)
            assert tokens(llm) == want


def fails(*_: Any) -> None:
    raise GgrunError("this card does not")


@pytest.mark.parametrize("mode", ["layer", "row"])
def test_clients_one_after_the_other(mode: str, kind: str, serve: Serve, path: Path, cupy: FakeCupy) -> None:
    """The memory of the first one's model is there for the second: nobody waits for Python's collector."""
    worker = serve("cuda:0,cuda:1")
    free, want = cupy.memGetInfo(), None
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            options = {"devices": "cpu", "n_gpu_layers": 99, "tensor_split": (1, 1), "split_mode": mode}
            with client(worker, path, **options) as llm:
                got = tokens(llm)
                assert want in (None, got)
                want = got
                if kind == "cupy":
                    assert cupy.memGetInfo() < free
            no_clients(worker)
            assert cupy.memGetInfo() == free
            devices = worker._shop.devices
            assert [worker._shop.ledger.free(d.name) for d in devices] == [d.free for d in devices]
    finally:
        gc.enable()


def test_clients_at_once(kind: str, serve: Serve, path: Path) -> None:
    worker = serve("cuda:0,cuda:1")
    options = {"devices": "cpu", "n_gpu_layers": 99, "tensor_split": (1, 1)}
    with client(worker, path, **options) as one, client(worker, path, **options) as other:
        want, got = tokens(one), dict[LLM, list[int]]()

        def talk(llm: LLM) -> None:
            for _ in range(3):
                got[llm] = tokens(llm)
                assert got[llm] == want

        threads = [threading.Thread(target=in_time, args=[partial(talk, llm)]) for llm in (one, other)]
        for thread in threads:
            thread.start()
        ended(threads)
        assert got == {one: want, other: want}


def test_a_card_whose_memory_others_have_taken(serve: Serve, path: Path, cupy: FakeCupy) -> None:
    """A line that says so; what was taken is free again, and the worker's next client has it."""
    worker = serve("cuda:0")
    free = cupy.memGetInfo()
    taken = cupy.malloc(free[0] - (1 << 20))
    gc.disable()
    try:
        with pytest.raises(GgrunError, match=r"cuda:0: no memory for .*: who else has taken memory of it"):
            client(worker, path, devices="cpu", n_gpu_layers=99)
        no_clients(worker)
        cupy.free(taken)
        assert cupy.memGetInfo() == free
    finally:
        gc.enable()
    with client(worker, path, devices="cpu", n_gpu_layers=99) as llm:
        assert tokens(llm)


def test_ggrun_bench_with_a_worker_that_lends_a_card(start: Start, path: Path, tmp_path: Path) -> None:
    """Two processes, as users have them."""
    if not which(compiler()):
        pytest.skip(f"the emulator needs {compiler()}")
    flags = "-d", "cuda:0", "-fitt", "0"
    worker = start("--insecure", *flags, module="tests.rpc.lends_cards")
    command = [sys.executable, "-m", "ggrun", "bench", "-m", str(path), "--rpc", worker.address, "--insecure"]
    command += ["--devices", "cpu", "-ngl", "99", "-p", "40", "-n", "4", "-r", "1", "-t", "1", "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    tests = json.loads(done.stdout)
    assert [test["backends"] for test in tests] == ["RPC", "RPC"]
    assert "cuda:0" in worker.text
    with LLM(path, n_ctx=64, threads=1, devices="cpu") as llm:
        want = llm.logits(PROMPT)
    rpc = RpcOptions(worker.address, insecure=1, tell=pytest.fail)
    with LLM(path, n_ctx=64, threads=1, devices="cpu", n_gpu_layers=99, rpc=rpc) as llm:
        assert worker.device("cuda:0") in llm.plan.to_json()
        assert distance(llm.logits(PROMPT), want) <= 1e-6


def test_who_comes_next_finds_its_memory(
    serve: Serve, path: Path, cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the worker takes to free it: as when a client loads again without another worker."""
    monkeypatch.setattr("ggrun.rpc.link._FAREWELL", 10 * PATIENCE)
    close = Cuda.close

    def slowly(card: Cuda) -> None:
        time.sleep(0.3)
        close(card)

    worker = serve("cuda:0")
    free = cupy.memGetInfo()
    with client(worker, path, devices="cpu", n_gpu_layers=99):
        monkeypatch.setattr(Cuda, "close", slowly)
    assert cupy.memGetInfo() == free
    with closing(connect(address(worker), insecure=1)) as found:
        (device,) = found.devices
    assert device.free == free[0]
