"""Many comings and goings: nothing of a client stays behind."""

import psutil
import pytest

from ggrun import LLM
from ggrun.bundled import demo_model
from ggrun.errors import GgrunError
from ggrun.rpc.keys import Key
from ggrun.rpc.link import Link
from ggrun.rpc.placed import RpcOptions
from tests.rpc.conftest import Start
from tests.rpc.processes import plan_of
from tests.waiting import until


@pytest.mark.parametrize("times", [30, pytest.param(1000, marks=pytest.mark.slow)])
def test_connects_and_disconnects_leave_nothing(start: Start, times: int) -> None:
    worker = start()
    key = Key.parse(worker.key or "")
    process = psutil.Process(worker.process.pid)

    def once() -> None:
        Link(worker.address, key).close()

    for _ in range(times // 3):
        once()
    worker.wait_for("has gone$", times // 3)
    before, threads, files = process.memory_info().rss, process.num_threads(), process.num_fds()
    for _ in range(times - times // 3):
        once()
    worker.wait_for("has gone$", times)
    until(lambda: process.num_threads() <= threads + 8, "the end of threads")
    until(lambda: process.num_fds() <= files + 8, "the end of connections")
    grown = process.memory_info().rss - before
    print(f"{times} clients: {grown / 2**20:+.1f} MiB, {process.num_threads() - threads:+} threads")
    assert grown < 32 << 20
    assert worker.has_its_memory


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
    worker.wait_for("has gone$", 2)
    before, threads, files = process.memory_info().rss, process.num_threads(), process.num_fds()
    for _ in range(times - 2):
        once()
    worker.wait_for("has gone$", times)
    until(lambda: process.num_threads() <= threads + 4, "the end of threads")
    until(lambda: process.num_fds() <= files + 4, "the end of files and connections")
    grown = process.memory_info().rss - before
    print(f"{times} models: {grown / 2**20:+.1f} MiB, {process.num_threads() - threads:+} threads")
    assert grown < 32 << 20
    assert worker.has_its_memory


def test_too_many_clients(start: Start) -> None:
    worker = start("--max-clients", "2")
    key = Key.parse(worker.key or "")
    two = [Link(worker.address, key) for _ in range(2)]
    with pytest.raises(GgrunError, match=r"the worker has 2 clients, and takes no more \(--max-clients\)"):
        Link(worker.address, key)
    for link in two:
        link.close()
    worker.wait_for("has gone$", 2)
    Link(worker.address, key).close()
