"""What ggrun bench says of where a model is: backends, and the memory that decode reads from."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import which
from typing import Any

import pytest

from ggrun.arch.config import Config
from ggrun.bundled import demo_model
from ggrun.cli import bench_used
from ggrun.cli.bench import bench
from ggrun.cli.bench_used import backends, memory_of
from ggrun.devices.cpu import Cpu
from ggrun.devices.cuda import local
from ggrun.devices.cuda.found import Cards
from ggrun.devices.emulated import Emulated
from ggrun.gguf import GGUF
from ggrun.plan import Plan, Stage, whole
from ggrun.plan.hardware import Speeds
from tests.cuda.fake_cupy import FakeCupy
from tests.kept import nothing_kept
from tests.tiny import Tiny
from tools.cuda_emulator.build import compiler

Run = Callable[..., list[dict[str, Any]]]


@pytest.mark.parametrize(
    ("stages", "names", "memory"),
    [
        ("cpu 4", "CPU", "cpu"),
        ("cpu:0:1GB 4", "CPU", "cpu:0:1GB"),
        ("cpu:0 2, cpu:1 4", "CPU", ""),
        ("cuda:0 4", "CUDA", "cuda:0"),
        ("cpu 0, cuda:0 4", "CUDA", "cuda:0"),  # which only embeds
        ("emulated:0:1GB 4", "EMULATED", "emulated:0:1GB"),
        ("cuda:0 4, cpu 4", "CUDA,CPU", ""),  # which has the output
        ("cpu 1, cuda:0 2, cpu 3, cuda:0 4", "CUDA,CPU", ""),
        ("cuda:0 2, cuda:1 4", "CUDA", ""),
        ("cuda:0.0 2, cuda:0.1 4", "CUDA", ""),
        ("cuda:0+cuda:1 4", "CUDA", ""),
        ("cuda:0+cpu 4", "CUDA,CPU", ""),
        ("cpu 0, spare:1/cuda:0 4", "RPC", "spare:1/cuda:0"),
        ("spare:1/cpu 2, cpu 4", "RPC,CPU", ""),
        ("cpu 1, spare:1/cpu 2, cuda:0 4", "CUDA,RPC,CPU", ""),
    ],
)
def test_what_plans_use(stages: str, names: str, memory: str, tmp_path: Path) -> None:
    config = Config.from_gguf(GGUF(Tiny(layers=2).write(tmp_path / "model.gguf")))
    begin, made = 0, []
    for stage in stages.split(", "):
        devices, end = stage.split()
        made.append(Stage((begin, int(end)), tuple(whole(config, name) for name in devices.split("+"))))
        begin = int(end)
    assert (backends(Plan(tuple(made))), memory_of(Plan(tuple(made)))) == (names, memory)
    assert memory_of(Plan(tuple(made), kv_on_host=True)) == ("cpu" if memory == "cpu" else "")


# ---------------------------------------------------------------- the command, in this process


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs ggrun bench on a small model, and has the results; nothing is kept of this machine before."""
    nothing_kept(monkeypatch, tmp_path / "cache")
    path = Tiny(layers=2).write(tmp_path / "tiny.gguf")

    def results(*flags: str) -> list[dict[str, Any]]:
        quick = ["-m", str(path), "-p", "4", "-n", "2", "-r", "1", "-t", "1", "-o", "jsonl"]
        assert bench.main([*quick, *flags], standalone_mode=False) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return results


def measuring(kind: type, monkeypatch: pytest.MonkeyPatch, rate: float) -> list[Any]:
    """The devices of a kind whose memory is measured from now on."""
    measured: list[Any] = []
    monkeypatch.setattr(kind, "bandwidth", lambda device: (measured.append(device), rate)[1])
    return measured


def test_the_cpus_memory_is_measured_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    measured, remembered = measuring(Cpu, monkeypatch, 5e9), []
    monkeypatch.setattr(bench_used, "remember", lambda *what: remembered.append(what))
    results = run("-m", str(demo_model()))
    assert len(results) == 4
    assert {(r["backends"], r["mean_threads"], r["memory_bandwidth"]) for r in results} == {("CPU", 1, 5e9)}
    assert len(measured) == 1
    assert remembered == [(1, 5e9)]
    assert [r["memory_share"] for r in results[::2]] == [None, None]
    for r in results[1::2]:
        assert r["memory_share"] == pytest.approx(r["token_bytes"] * r["avg_ts"] / 5e9)


@pytest.mark.parametrize("more", ["", ",cpu"])
def test_where_all_is_on_one_card(more: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a CPU beside it, that embeds."""
    cpus, cards = measuring(Cpu, monkeypatch, 5e9), measuring(Emulated, monkeypatch, 7e9)
    for r in run("--devices", f"emulated:0:1GB{more}", "-ngl", "all"):
        assert (r["backends"], r["mean_threads"], r["memory_bandwidth"]) == ("EMULATED", None, 7e9)
    assert len(cards) == 1
    assert cpus == []


@pytest.mark.parametrize(
    ("flags", "names", "threads"),
    [
        ("--devices emulated:0:1GB,emulated:1:1GB -sm row -ts 1,1", "EMULATED", None),
        ("--devices emulated:0:1GB,cpu -ngl 2 --no-op-offload", "EMULATED,CPU", 1),
        ("--devices emulated:0:1GB,cpu -ngl all -nkvo", "EMULATED", None),
        ("--devices cpu:0:1GB,cpu:1:1GB -ts 1,1 -t 2", "CPU", 2),
    ],
)
def test_several_memories_have_no_bandwidth(
    flags: str, names: str, threads: int | None, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = [measuring(kind, monkeypatch, 5e9) for kind in (Cpu, Emulated)]
    for r in run(*flags.split()):
        assert (r["backends"], r["memory_bandwidth"], r["memory_share"]) == (names, None, None)
        assert (r["read_bytes_per_second"] is None) == (r["n_prompt"] > 0)
        assert r["mean_threads"] == threads
    assert measured == [[], []]


# ---------------------------------------------------------------- real devices of a card that is emulated


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCupy]:
    if not which(compiler()):
        pytest.skip(f"the emulator needs {compiler()}")
    fake = FakeCupy()
    monkeypatch.setitem(sys.modules, "cupy", fake)  # type: ignore[arg-type]
    monkeypatch.setattr(local, "_card_speeds", lambda *_: Speeds(1e9, 1e10, 1e10, 1e9))
    Cards.found.cache_clear()
    yield fake
    Cards.found.cache_clear()


def test_a_cards_own_copies_are_the_measure(
    cupy: FakeCupy, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpus = measuring(Cpu, monkeypatch, 5e9)
    results = run("--devices", "cuda:0:96MB")
    assert {r["backends"] for r in results} == {"CUDA"}
    assert 1e6 < results[1]["memory_bandwidth"] < 1e13
    assert results[1]["memory_share"] > 0
    assert cpus == []


def test_a_card_that_is_full_has_none(cupy: FakeCupy, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    there = cupy.getDeviceProperties
    monkeypatch.setattr(cupy, "getDeviceProperties", lambda i: {**there(i), "l2CacheSize": 1 << 26})
    for r in run("--devices", "cuda:0:96MB"):
        assert (r["backends"], r["memory_bandwidth"], r["memory_share"]) == ("CUDA", None, None)
