"""Models whose stages run in other processes: the same text as here, whatever the plan."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from ggrun import LLM
from ggrun.bundled import demo_model
from ggrun.errors import GgrunError, Interrupted, UsageError
from ggrun.gguf import GGUF
from ggrun.plan import Plan, Stage
from ggrun.rpc.placed import RpcOptions
from tests.cli.test_worker import ggrun
from tests.plans import Plans
from tests.rpc.conftest import Start
from tests.rpc.processes import WorkerProcess, plan_of
from tests.rpc.proxy import Proxy
from tests.tiny import Tiny

PROMPT = "The king ordered the"
MODEL = Path(demo_model())
HALVES = 16


def text(llm: LLM, n: int = 24) -> str:
    return "".join(llm.generate(PROMPT, temp=0.0, max_tokens=n))


@pytest.fixture(scope="module")
def want() -> str:
    with LLM(MODEL, n_ctx=256, threads=1) as llm:
        return text(llm)


@pytest.fixture
def workers(start: Start) -> list[WorkerProcess]:
    return [start("--insecure", name="a"), start("--insecure", name="b"), start("--insecure", name="c")]


def test_all_plans_give_the_same_text(workers: list[WorkerProcess], want: str) -> None:
    a, b, c = (worker.device() for worker in workers)
    plans = [
        [("cpu", 0), (a, HALVES)],
        [(a, HALVES)],
        [("cpu", 6), (a, HALVES)],
        [(a, 5), ("cpu", HALVES)],
        [("cpu", 2), (a, 6), ("cpu", 9), (a, HALVES)],
        [(a, 8), (b, HALVES)],
        [("cpu", 1), (a, 8), (b, HALVES)],
        [(a, 2), (b, 5), ("cpu", HALVES)],
        [("cpu", 0), (a, 4), (b, 8), (c, 12), ("cpu", HALVES)],
        [(a, 4), (b, 8), (c, HALVES)],
        [(a, 4), (b, 8), (a, HALVES)],
    ]
    for stages in plans:
        names = {name.partition("/")[0] for name, _ in stages if "/" in name}
        rpc = RpcOptions(",".join(sorted(names)), insecure=1)
        with LLM(MODEL, n_ctx=256, threads=1, plan=plan_of(MODEL, *stages), rpc=rpc, n_ubatch=4) as llm:
            assert text(llm) == want, stages


def test_a_second_load_imports_what_it_needs(start: Start) -> None:
    """Nothing of the worker's side, of making certificates, or that only compiling needs."""
    worker = start()
    code = (
        "import sys; from ggrun import LLM; from ggrun.bundled import demo_model\n"
        f"plan = dict(devices='cpu', rpc={worker.address!r}, n_gpu_layers=4, n_ctx=64, threads=1)\n"
        "with LLM(demo_model(), **plan) as llm: llm.logits([1, 2])\n"
        "heavy = ('ggrun.rpc.server', 'ggrun.rpc.session', 'ggrun.rpc.store', 'cryptography', 'zeroconf',\n"
        "    'numba.np.linalg', 'numba.np.arrayobj', 'jinja2', 'tokenizers', 'llguidance')\n"
        "print('ggrun.rpc.remote' in sys.modules, *(name for name in heavy if name in sys.modules))"
    )
    loads = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    assert loads[1].stdout == "True\n"


def test_a_worker_has_numba_before_a_client_comes(start: Start) -> None:
    """Which takes a while to import; also at a start at which nothing has to be measured any more."""
    worker = start("--insecure")
    worker.kill()
    worker.start(str(worker.port))
    assert any("llvmlite" in each.path for each in psutil.Process(worker.process.pid).memory_maps())


def test_rows_inside_a_worker(start: Start, tmp_path: Path) -> None:
    """A hybrid plan: a stage whose members share each matrix, on one machine; logits of several members."""
    worker = start("--insecure", "-d", "cpu:0:1GB,cpu:1:1GB,cpu:2:1GB")
    path = Tiny(layers=4).write(tmp_path / "model.gguf")
    names = [worker.device(f"cpu:{i}:1GB") for i in range(3)]
    plans = Plans(GGUF(path), [*names, "cpu"])
    tokens = [i % 50 for i in range(40)]
    with LLM(path, devices="cpu", threads=1) as here:
        want = here.logits(tokens)
    for kind in ("row 2", "row 3", "layer 4", "row inside layer"):
        plan = plans[kind]
        if kind == "row inside layer":
            plan = Plan((plan.stages[0], Stage(plan.stages[1].halves, plans.row(names[1:], [1, 1]))))
        with LLM(path, plan=plan, threads=1, n_ubatch=8, rpc=RpcOptions(worker.address, insecure=1)) as llm:
            assert np.allclose(llm.logits(tokens), want, rtol=0, atol=1e-3), kind


def test_workers_push_to_each_other(workers: list[WorkerProcess], want: str) -> None:
    """Directly, where one follows the other; by way of the client, where there is no way."""
    a, b, _ = workers
    stages = [("cpu", 2), (a.device(), 8), (b.device(), HALVES)]
    rpc = RpcOptions(f"{a.address},{b.address}", insecure=1)
    with LLM(MODEL, n_ctx=256, threads=1, plan=plan_of(MODEL, *stages), rpc=rpc) as llm:
        _, first, second = llm._engine._pipeline._stages
        assert first.pushes_to is second
        assert text(llm) == want
    with Proxy(b.port, most=2) as proxy:  # the client's probe, and its stream
        stages[2] = (f"{proxy.address}/cpu:0:1GB", HALVES)
        rpc = RpcOptions(f"{a.address},{proxy.address}", insecure=1)
        with LLM(MODEL, n_ctx=256, threads=1, plan=plan_of(MODEL, *stages), rpc=rpc) as llm:
            assert llm._engine._pipeline._stages[1].pushes_to is None
            assert text(llm) == want


def test_prompts_in_micro_batches_and_many_texts(workers: list[WorkerProcess]) -> None:
    a, b, _ = workers
    plan = plan_of(MODEL, ("cpu", 4), (a.device(), 9), (b.device(), HALVES))
    tokens = [(7 * i) % 500 for i in range(200)]
    rpc = RpcOptions(f"{a.address},{b.address}", insecure=1)
    with (
        LLM(MODEL, n_ctx=256, threads=1, n_ubatch=16) as here,
        LLM(MODEL, n_ctx=256, threads=1, n_ubatch=16, plan=plan, rpc=rpc) as llm,
    ):
        assert np.array_equal(llm.logits(tokens), here.logits(tokens))
        for begin in range(3):
            assert text(llm) == text(here)
            assert np.array_equal(llm.logits(tokens[begin:]), here.logits(tokens[begin:]))


@pytest.mark.parametrize(("form", "tolerance"), [("f32", 0.0), ("f16", 0.05), ("bf16", 0.3)])
def test_forms_of_activations(start: Start, form: str, tolerance: float) -> None:
    worker = start("--insecure")
    plan = plan_of(MODEL, ("cpu", 8), (worker.device(), 12), ("cpu", HALVES))
    rpc = RpcOptions(worker.address, insecure=1, form=form)
    with (
        LLM(MODEL, n_ctx=64, threads=1) as here,
        LLM(MODEL, n_ctx=64, threads=1, plan=plan, rpc=rpc) as llm,
    ):
        want, got = here.logits(range(20)), llm.logits(range(20))
    assert np.abs(want - got).max() <= tolerance * np.abs(want).max()
    assert np.array_equal(want, got) == (form == "f32")


@pytest.fixture
def llm(start: Start) -> Iterator[LLM]:
    worker = start("--insecure")
    plan = plan_of(MODEL, ("cpu", 8), (worker.device(), HALVES))
    rpc = RpcOptions(worker.address, insecure=1)
    with LLM(MODEL, n_ctx=256, threads=1, n_ubatch=8, plan=plan, rpc=rpc) as model:
        yield model


def test_an_interrupt_ends_one_text_and_not_the_next(llm: LLM, want: str) -> None:
    for _ in range(5):
        pieces = llm.generate(PROMPT, temp=0.0)
        next(pieces)
        llm.interrupt()
        with pytest.raises(Interrupted):
            list(pieces)
        assert text(llm) == want


def test_an_error_here_leaves_the_worker_usable(llm: LLM, want: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = llm._engine._pipeline._stages[0].runners[0].segments[-1].program

    def fail() -> None:
        raise GgrunError("this one")

    with monkeypatch.context() as patch:
        patch.setattr(program, "_walk", fail)
        with pytest.raises(GgrunError, match="this one"):
            text(llm)
    assert text(llm) == want


def test_a_stage_over_machines_is_refused_by_name(workers: list[WorkerProcess], tmp_path: Path) -> None:
    path = Tiny(layers=4).write(tmp_path / "model.gguf")
    a, b, _ = (worker.device() for worker in workers)
    plan = Plans(GGUF(path), [a, b, "cpu", "cpu:1"])["row 2"]
    rpc = RpcOptions(f"{workers[0].address},{workers[1].address}", insecure=1)
    first, second = sorted(worker.address for worker in workers[:2])
    with pytest.raises(UsageError, match=f"{first} and {second}.*on one machine"):
        LLM(path, plan=plan, rpc=rpc)


def test_a_worker_that_gets_nothing_is_told_of(start: Start) -> None:
    """But where a plan that the user wrote does not name it."""
    worker, told = start("--insecure"), list[str]()
    rpc = RpcOptions(worker.address, insecure=1, tell=told.append)
    with LLM(MODEL, n_ctx=64, threads=1, n_gpu_layers=4, rpc=rpc):
        assert told == []
    with LLM(MODEL, n_ctx=64, threads=1, plan=plan_of(MODEL, ("cpu", HALVES)), rpc=rpc):
        assert told == []
    with LLM(MODEL, n_ctx=64, threads=1, n_gpu_layers=0, rpc=rpc):
        why = "it gets no part of the model (ggrun plan says why; -ngl gives it some)"
        assert told == [f"{worker.address} is left out: {why}"]


def test_a_worker_whose_device_is_named_gets_layers(start: Start) -> None:
    """Although this machine's CPU alone would be faster."""
    worker, told = start("--insecure"), list[str]()
    rpc = RpcOptions(worker.address, insecure=1, tell=told.append)
    named = worker.device("cpu:0")
    with LLM(MODEL, n_ctx=64, threads=1, devices="cpu", order=(named,), rpc=rpc) as llm:
        assert [m.device for m in llm.plan.stages[-1].members] == [worker.device()]
    assert told == []


def test_a_workers_devices_are_listed(start: Start) -> None:
    worker = start("--insecure")
    done = ggrun("run", "--list-devices", "--devices", "cpu:3:1GB", "--rpc", worker.address, "--insecure")
    assert done.stdout.splitlines() == [
        "devices:",
        f"  {worker.device()}: CPU (1024 MiB, 1024 MiB free)",
        "  cpu:3:1GB: CPU (1024 MiB, 1024 MiB free)",
    ], done.stderr
