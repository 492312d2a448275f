"""Hosts as network namespaces, with the bandwidth set by tc: what is predicted of them, and what they do."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest

from ggrun import LLM
from ggrun.devices.local import local_cpu
from ggrun.rpc import keys
from ggrun.rpc.placed import RpcOptions
from tests.rpc.processes import WorkerProcess, plan_of
from tests.rpc.proxy import Proxy
from tests.tiny import Tiny

NAME, HERE, THERE = "ggrun-test", "10.213.7.1", "10.213.7.2"
SHAPED = "tbf rate 1gbit burst 32k latency 50ms"
DELAY = 0.5e-3


def do(command: str) -> None:
    subprocess.run(command.split(), check=True, capture_output=True)


@pytest.fixture
def host() -> Iterator[list[str]]:
    """What runs a command on the other host, at the end of 1 Gbit/s."""
    if os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("tc"):
        pytest.skip("needs root, ip and tc")
    inside = f"ip netns exec {NAME}"
    try:
        do(f"ip netns add {NAME}")
    except subprocess.CalledProcessError:
        pytest.skip("no network namespaces here")
    try:
        do(f"ip link add gg0 type veth peer name gg1 netns {NAME}")
        do(f"ip addr add {HERE}/24 dev gg0")
        do(f"{inside} ip addr add {THERE}/24 dev gg1")
        do("ip link set gg0 up")
        do(f"{inside} ip link set gg1 up")
        do(f"{inside} ip link set lo up")
        do(f"tc qdisc add dev gg0 root {SHAPED}")
        do(f"{inside} tc qdisc add dev gg1 root {SHAPED}")
        yield inside.split()
    finally:
        do(f"ip netns del {NAME}")


@pytest.mark.slow
def test_the_prediction_counts_the_link(
    host: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 1 Gbit/s and half a millisecond: within 15 % of what is measured."""
    monkeypatch.setenv("GGRUN_CONFIG", str(tmp_path / "client"))
    local_cpu(1, measure=True)
    path = Tiny(layers=8, width=2048, heads=16, kv_heads=4, ff=5632, vocab=2000, context=1024).write(
        tmp_path / "model.gguf"
    )
    worker = WorkerProcess(tmp_path / "worker", "-H", THERE, "-d", "cpu:0:4GB", inside=host)
    try:
        with Proxy(worker.port, host=THERE, delay=DELAY) as proxy:
            keys.join(proxy.address, keys.Key.parse(worker.key or ""))
            plan = plan_of(path, ("cpu", 8), (f"{proxy.address}/cpu:0:4GB", 16))
            with LLM(path, n_ctx=1024, threads=1, plan=plan, rpc=RpcOptions(proxy.address)) as llm:
                tokens = llm.generate_tokens([1] * 500, temp=0.0)
                next(tokens)
                seconds = median(timed(tokens) for _ in range(40))
                planned = llm._placed.planned
                device = next(d for d in planned.devices if d.network)
        predicted = planned.speed.token / 1e12
        told = f"predicted {predicted * 1e3:.2f} ms, measured {seconds * 1e3:.2f} ms; {device}"
        print(told)
        assert DELAY < device.latency < 2 * DELAY, told
        assert 50e6 < device.network < 130e6, told
        assert abs(predicted / seconds - 1) < 0.15, told
    finally:
        worker.end()


def timed(tokens: Iterator[int]) -> float:
    start = time.perf_counter()
    next(tokens)
    return time.perf_counter() - start
