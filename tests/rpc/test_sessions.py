"""Many comings and goings: nothing of a client stays behind."""

import time

import psutil
import pytest

from ggrun import LLM
from ggrun.bundled import demo_model
from ggrun.errors import GgrunError
from ggrun.rpc.keys import Key
from ggrun.rpc.link import Link
from ggrun.rpc.placed import RpcOptions
from ggrun.rpc.workers import connect
from tests.rpc.conftest import Start
from tests.rpc.processes import plan_of


@pytest.mark.parametrize("times", [30, pytest.param(1000, marks=pytest.mark.slow)])
def test_connects_and_disconnects_leave_nothing(start: Start, times: int) -> None:
    worker = start()
    key = Key.parse(worker.key or "")
    process = psutil.Process(worker.process.pid)

    def once() -> None:
        Link(worker.address, key).close()

    for _ in range(times // 3):
        once()
    settle(worker.lines, times // 3)
    before, threads, files = process.memory_info().rss, process.num_threads(), process.num_fds()
    for _ in range(times - times // 3):
        once()
    settle(worker.lines, times)
    grown = process.memory_info().rss - before
    print(f"{times} clients: {grown / 2**20:+.1f} MiB, {process.num_threads() - threads:+} threads")
    assert grown < 32 << 20
    assert process.num_threads() <= threads + 8
    assert process.num_fds() <= files + 8
    (device,) = connect(worker.address).devices
    assert device.free == device.memory


@pytest.mark.parametrize("times", [6, pytest.param(200, marks=pytest.mark.slow)])
def test_loaded_models_leave_nothing(start: Start, times: int) -> None:
    """Memory, the devices' threads, and the files that weights are read from."""
    worker = start("--insecure")
    process, plan = psutil.Process(worker.process.pid), plan_of(demo_model(), (worker.device(), 16))
    rpc = RpcOptions(worker.address, insecure=1)

    def once() -> None:
        with LLM(demo_model(), n_ctx=64, threads=1, plan=plan, rpc=rpc) as llm:
            assert "".join(llm.generate("The king", temp=0.0, max_tokens=2))

    for _ in range(2):
        once()
    settle(worker.lines, 2)
    before, threads, files = process.memory_info().rss, process.num_threads(), process.num_fds()
    for _ in range(times - 2):
        once()
    settle(worker.lines, times)
    grown = process.memory_info().rss - before
    print(f"{times} models: {grown / 2**20:+.1f} MiB, {process.num_threads() - threads:+} threads")
    assert grown < 32 << 20
    assert process.num_threads() <= threads + 4
    assert process.num_fds() <= files + 4
    (device,) = connect(worker.address, insecure=1).devices
    assert device.free == device.memory


def settle(lines: list[str], times: int) -> None:
    """Wait until so many clients have gone."""
    deadline = time.monotonic() + 20
    while sum(line.endswith("has gone") for line in lines) < times:
        assert time.monotonic() < deadline, "sessions stay behind"
        time.sleep(0.02)
    time.sleep(0.2)


def test_too_many_clients(start: Start) -> None:
    worker = start("--max-clients", "2")
    key = Key.parse(worker.key or "")
    two = [Link(worker.address, key) for _ in range(2)]
    with pytest.raises(GgrunError, match=r"the worker has 2 clients, and takes no more \(--max-clients\)"):
        Link(worker.address, key)
    for link in two:
        link.close()
    settle(worker.lines, 2)
    Link(worker.address, key).close()
