"""Where a worker's weights come from: its own files, its cache, or the client; and never twice."""

import shutil
import threading
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from ggrun import LLM
from ggrun.bundled import demo_model
from ggrun.engine.hosts import HostLost
from ggrun.errors import GgrunError
from ggrun.gguf import GGUF
from ggrun.rpc.placed import RpcOptions
from tests.rpc.conftest import Start
from tests.rpc.processes import WorkerProcess, plan_of
from tests.rpc.proxy import Proxy
from tests.tiny import Tiny

MODEL, HALVES = Path(demo_model()), 16
PROMPT = "The king ordered the"


@pytest.fixture(scope="module")
def want() -> str:
    with LLM(MODEL, n_ctx=256, threads=1) as llm:
        return "".join(llm.generate(PROMPT, temp=0.0, max_tokens=20))


def load(proxy: Proxy, want: str) -> None:
    """All layers on the worker; the text must be right."""
    plan = plan_of(MODEL, ("cpu", 0), (f"{proxy.address}/cpu:0:1GB", HALVES))
    with LLM(MODEL, n_ctx=256, threads=1, plan=plan, rpc=RpcOptions(proxy.address, insecure=1)) as llm:
        assert "".join(llm.generate(PROMPT, temp=0.0, max_tokens=20)) == want


def sent(port: int, want: str) -> int:
    """The bytes that a load and a short answer send."""
    with Proxy(port) as proxy:
        load(proxy, want)
        return proxy.up


def kept(worker: WorkerProcess) -> list[Path]:
    """The files of its cache."""
    return list((worker.folder / "cache" / "tensors").glob("??/*"))


def test_weights_are_sent_once(start: Start, want: str) -> None:
    worker = start("--insecure")
    first, second = sent(worker.port, want), sent(worker.port, want)
    assert first > 6 << 20
    assert second < 1_000_000
    assert kept(worker)


def test_weights_that_the_worker_has_are_not_sent(start: Start, want: str, tmp_path: Path) -> None:
    """By what is in the file, whatever its name is; other models and no models beside it do no harm."""
    (tmp_path / "models" / "deep").mkdir(parents=True)
    shutil.copy(MODEL, tmp_path / "models" / "deep" / "renamed.gguf")
    Tiny().write(tmp_path / "models" / "tiny.gguf")
    (tmp_path / "models" / "broken.gguf").write_bytes(b"GGUF")
    worker = start("--insecure", "--models", str(tmp_path / "models"))
    assert sent(worker.port, want) < 1_000_000
    assert "broken.gguf is left out" in worker.text
    assert kept(worker) == []


def test_a_file_of_the_same_shape_is_not_taken_for_it(start: Start, tmp_path: Path) -> None:
    path = Tiny(seed=1).write(tmp_path / "model.gguf")
    (tmp_path / "models").mkdir()
    Tiny(seed=2).write(tmp_path / "models" / "model.gguf")
    worker = start("--insecure", "--models", str(tmp_path / "models"))
    plan = plan_of(path, (worker.device(), 4))
    with (
        LLM(path, threads=1, devices="cpu") as here,
        LLM(path, threads=1, plan=plan, rpc=RpcOptions(worker.address, insecure=1)) as there,
    ):
        assert np.array_equal(here.logits(range(20)), there.logits(range(20)))


def test_a_broken_load_goes_on_where_it_was(start: Start, want: str) -> None:
    worker = start("--insecure")
    with Proxy(worker.port, break_at=6 << 20, pace=0.005) as proxy:
        plan = plan_of(MODEL, (f"{proxy.address}/cpu:0:1GB", HALVES))
        told: list[str] = []
        rpc = RpcOptions(proxy.address, insecure=1, tell=told.append)
        with LLM(MODEL, n_ctx=256, threads=1, plan=plan, rpc=rpc) as llm:
            assert "".join(llm.generate(PROMPT, temp=0.0, max_tokens=20)) == want
        assert len(told) == 1
        assert proxy.address not in llm.plan.to_json()
    worker.wait_for("has gone")
    assert sent(worker.port, want) < 6 << 20


def test_a_wrong_beginning_is_sent_again(start: Start, want: str) -> None:
    """In one load: anybody who has joined may have left it."""
    worker, model = start("--insecure"), GGUF(MODEL)
    name = max((n for n in model.tensors if n.startswith("blk.5.")), key=lambda n: model.tensors[n].nbytes)
    digest = sha256(model.tensors[name].data).hexdigest()
    part = worker.folder / "cache" / "tensors" / digest[:2] / f"{digest}.part"
    part.parent.mkdir()
    part.write_bytes(bytes(model.tensors[name].nbytes // 2))
    assert sent(worker.port, want) > sum(tensor.nbytes for tensor in model.tensors.values()) * 0.9
    assert digest in [path.name for path in kept(worker)]
    assert sent(worker.port, want) < 1_000_000


def test_nothing_stays_without_a_cache(start: Start, want: str) -> None:
    worker = start("--insecure", "--no-cache")
    assert sent(worker.port, want) > 6 << 20
    assert kept(worker) == []
    assert sent(worker.port, want) > 6 << 20


def test_three_clients_at_once_and_room(start: Start, want: str) -> None:
    """Each has its memory; who comes too late is told, and leaves the others as they are."""
    worker = start("--insecure", "--max-memory", "64MB", "--max-clients", "4")
    plan = plan_of(MODEL, ("cpu", 2), (worker.device(), HALVES))
    rpc = RpcOptions(worker.address, insecure=1)
    errors: list[BaseException] = []

    def client() -> None:
        try:
            with LLM(MODEL, n_ctx=256, threads=1, plan=plan, rpc=rpc) as llm:
                for _ in range(3):
                    assert "".join(llm.generate(PROMPT, temp=0.0, max_tokens=20)) == want
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=client) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    with ExitStack() as stack:
        models = [stack.enter_context(LLM(MODEL, n_ctx=256, threads=1, plan=plan, rpc=rpc)) for _ in range(3)]
        with pytest.raises(GgrunError, match=f"does not fit: {worker.device()} needs 17 MiB"):
            LLM(MODEL, n_ctx=256, threads=1, plan=plan, rpc=rpc)
        with pytest.raises(GgrunError, match=r"1GB: 1\d MiB are needed, \d+ MiB are left"):
            LLM(MODEL, n_ctx=256, threads=1, plan=plan, rpc=rpc, fit=False)
        for model in models:
            assert "".join(model.generate(PROMPT, temp=0.0, max_tokens=20)) == want
    worker.wait_for("has gone$", 8)
    assert worker.text.count("has gone") == worker.text.count("has come") == 8


def test_lost(start: Start) -> None:
    with pytest.raises(HostLost, match="cannot be reached"):
        LLM(MODEL, rpc=RpcOptions("127.0.0.1:1", insecure=1))
