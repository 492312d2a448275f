"""ggrun doctor: machines with and without cards, and what is broken in them."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import which
from typing import Any

import pytest

from ggrun.cli import checkup
from ggrun.cli.commands import status_of
from ggrun.devices.cuda import found, selftest
from ggrun.devices.cuda.found import Cards, nvidia_driver
from ggrun.devices.cuda.links import known_pairs
from ggrun.plan.hardware import Speeds, cpu_info
from tests.cli.test_run import ggrun
from tests.cuda.fake_cupy import CUDARuntimeError, FakeCupy
from tests.cuda.fake_nccl import FakeNccl
from tests.cuda.limits import limit_checks
from tests.kept import nothing_kept
from tools.cuda_emulator.build import compiler

Run = Callable[..., tuple[int, Any]]


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeCupy]:
    """Two cards that nobody has seen before, by a CuPy that is none."""
    if not which(compiler()):
        pytest.skip(f"the emulator needs {compiler()}")
    fake = FakeCupy()
    monkeypatch.setattr(fake, "deviceGetPCIBusId", lambda index: f"{tmp_path} {index}")
    monkeypatch.setitem(sys.modules, "cupy", fake)  # type: ignore[arg-type]
    Cards.found.cache_clear()
    yield fake
    Cards.found.cache_clear()


@pytest.fixture
def doctor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs ggrun doctor in this process: its exit status, and its page or JSON."""
    nothing_kept(monkeypatch, tmp_path / "cache")
    cpu = cpu_info("cpu", 1 << 30, 1 << 29, Speeds(4e10, 5e11))
    monkeypatch.setattr(checkup, "local_cpu", lambda measure: cpu)

    def run(*args: str, opener: str = "works") -> tuple[int, Any]:
        monkeypatch.setattr(selftest, "OPEN", f"tests.cuda.openers:{opener}")
        status = status_of(["doctor", *args])
        out = capsys.readouterr().out
        return status, json.loads(out) if "--json" in args else out

    return run


def test_a_machine_without_cards() -> None:
    """As a user runs it, with all that is measured."""
    done = ggrun("doctor", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr
    for words in ("versions  ggrun 0.1.0, Python 3.", "CPU ", "kernels for ", " GB/s, ", "memory ", "cache "):
        assert words in done.stdout
    assert done.stdout.endswith("\nall is well\n")
    facts = json.loads(ggrun("doctor", "--json", CUDA_VISIBLE_DEVICES="").stdout)
    assert facts["cards"] == facts["links"] == facts["sums"] == facts["broken"] == []
    assert facts["cpu"]["bandwidth"] > 1e8
    assert facts["cpu"]["cores"] >= 1
    assert 0 < facts["memory"]["available"] <= facts["memory"]["total"]


def test_settings_that_are_broken(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = ggrun("doctor", GGRUN_SIMD="abacus", GGRUN_CACHE=str(tmp_path / "file"))
    assert done.returncode == 1
    assert "broken    GGRUN_SIMD=abacus: it must be one of avx512, avx2, portable\n" in done.stdout
    assert f"cannot write to the cache folder {tmp_path}/file (" in done.stdout
    assert "all is well" not in done.stdout
    assert "Traceback" not in done.stderr


def test_two_cards_that_work(doctor: Run, cupy: FakeCupy) -> None:
    status, facts = doctor("--json")
    assert (status, facts["broken"]) == (0, [])
    cards = [
        {
            "name": f"cuda:{i}", "label": "Fake", "memory": 1 << 28, "free": 1 << 28, "capability": "8.0",
            "usable": True, "reason": "",
        }
        for i in (0, 1)
    ]  # fmt: skip
    assert facts["cards"] == cards
    there, back = facts["links"]
    assert (there["from"], there["to"], there["direct"], there["reason"]) == ("cuda:0", "cuda:1", True, "")
    assert (back["from"], back["to"], back["direct"]) == ("cuda:1", "cuda:0", True)
    assert there["bandwidth"] > 1e6
    assert there["latency"] > 0
    assert facts["cuda"] == {"the driver's CUDA": "12.2", "CuPy's CUDA": "13.1", "NCCL": "missing"}
    assert facts["advice"] == ["NCCL is missing, which is faster in mode row: pip install nvidia-nccl-cu13"]
    assert [sums["bytes"] for sums in facts["sums"]] == [4096, 8192]
    assert all(sums["copies"] > 0 and sums["NCCL"] is None for sums in facts["sums"])
    assert facts["cache"]["bytes"] > 0  # what was found is kept


def test_the_page_of_two_cards(doctor: Run, cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy.cuda.nccl", FakeNccl(cupy))  # type: ignore[arg-type]
    status, page = doctor()
    assert status == 0
    assert "CUDA      the driver's CUDA 12.2, CuPy's CUDA 13.1, NCCL 2.27.3\n" in page
    assert (
        "cards     cuda:0: Fake, 0.2 GiB (0.2 GiB free), compute capability 8.0\n          cuda:1: " in page
    )
    assert "links     cuda:0 to cuda:1: direct, " in page
    assert "sums      of 4 KiB a card: " in page
    assert " us by copies\n" in page
    # The process that tests has other cards, which are emulated.
    assert "advice    mode row sums without NCCL: NCCL needs real cards" in page


@pytest.mark.parametrize(("opener", "why"), [("corrupts", "bytes came wrong"), ("hangs", "no end after 1 s")])
def test_copies_that_fail(
    opener: str, why: str, doctor: Run, cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is another way, so nothing is broken; unless this one is asked for."""
    limit_checks(monkeypatch, 60.0)
    if opener == "hangs":
        limit_checks(monkeypatch, 1.0, "direct copies")
    status, facts = doctor("--json", opener=opener)
    assert (status, facts["broken"]) == (0, [])
    for link in facts["links"]:
        assert not link["direct"]
        assert why in link["reason"]
        assert link["bandwidth"] > 1e6
    assert "an IOMMU or ACS" in facts["advice"][0]
    monkeypatch.setenv("GGRUN_P2P", "on")
    if opener == "hangs":  # sums go directly now
        limit_checks(monkeypatch, 1.0, "sums by copies")
    status, page = doctor(opener=opener)
    assert status == 1
    assert "broken    cuda:0 and cuda:1: --p2p on, and direct copies fail: " in page


def test_what_was_known_is_tested_again(doctor: Run, cupy: FakeCupy) -> None:
    assert doctor("--json")[1]["links"][0]["direct"]
    assert not doctor("--json", opener="corrupts")[1]["links"][0]["direct"]
    assert known_pairs([0, 1])[0, 1].direct is None


def test_a_test_that_does_not_start(doctor: Run, cupy: FakeCupy) -> None:
    status, page = doctor(opener="does_not_start")
    assert status == 0
    assert (
        "through the host's memory, not measured (the self-test did not start: cuda:0: no such card)" in page
    )


def test_cards_that_cannot_be_used(doctor: Run, cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch) -> None:
    cupy._major = 6
    status, page = doctor()
    assert status == 1
    assert "cannot be used: cuda:0 (Fake): its compute capability is 6.0, ggrun needs 7.5" in page
    assert page.endswith("broken    no card can be used: everything runs on the CPU\n")
    assert "links" not in page
    cupy._major = 8
    monkeypatch.setattr(cupy, "memGetInfo", refuse)
    status, facts = doctor("--json")
    assert status == 1
    assert [card["usable"] for card in facts["cards"]] == [False, False]
    assert facts["broken"][0] == "cuda:0 (Fake): its memory: cudaErrorDevicesUnavailable: busy"


def test_a_card_that_is_lost(doctor: Run, cupy: FakeCupy) -> None:
    """It is broken, and said to be; all else is looked at."""
    cupy.lost = {0}
    why = "cuda:0: cudaErrorInvalidDevice: the GPU is lost: nvidia-smi must list it"
    status, page = doctor()
    assert status == 1
    assert f"cards     {why}\n          cuda:1: Fake, " in page
    assert f"broken    {why}\n" in page
    facts = doctor("--json")[1]
    assert facts["cards"][0] == {"name": "cuda:0", "usable": False, "reason": why}
    assert facts["cards"][1]["usable"]


def refuse() -> None:
    raise CUDARuntimeError(46, "cudaErrorDevicesUnavailable: busy\nor whatever")


def test_a_cupy_that_does_not_work(doctor: Run, cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch) -> None:
    cupy.failing["getDeviceCount"] = CUDARuntimeError(35, "too old")
    status, facts = doctor("--json")
    assert status == 1
    assert facts["broken"][0].startswith("CUDA: the driver is for CUDA 12.2, this CuPy needs 13.1: update")
    cupy.failing["getDeviceCount"] = CUDARuntimeError(100, "cudaErrorNoDevice")
    Cards.found.cache_clear()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    status, facts = doctor("--json")
    assert (status, facts["cards"]) == (0, [])
    assert facts["advice"] == ["CUDA finds no card (CUDA_VISIBLE_DEVICES is '-1'): nvidia-smi must list it"]


def test_a_cupy_that_is_half_installed(tmp_path: Path) -> None:
    """As pip may leave it. Whoever has not asked for a card does without; doctor says what to install."""
    (tmp_path / "cupy").mkdir()
    (tmp_path / "cupy" / "__init__.py").touch()  # a folder alone would give way to a CuPy that is there
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = ggrun("doctor", PYTHONPATH=path)
    assert done.returncode == 1
    assert (
        "broken    CuPy cannot be used: module 'cupy' has no attribute 'cuda': pip install 'gg" in done.stdout
    )
    done = ggrun("run", "-p", "Once", "-n", "1", "--no-show-timings", PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Once")


MODULE = (
    "NVRM version: NVIDIA UNIX x86_64 Kernel Module  {}  Sun Jul 27 07:00:00 UTC 2025\nGCC version:  12.2.0\n"
)
OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {}  Release Build\nGCC version: 12.2\n"


@pytest.mark.parametrize("text", [MODULE, OPEN])
@pytest.mark.parametrize(("version", "extra"), [("580.65.06", "cuda13"), ("535.183.01", "cuda12")])
def test_a_driver_without_cupy(
    text: str, version: str, extra: str, doctor: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "version").write_text(text.format(version))
    monkeypatch.setattr(found, "_DRIVER", tmp_path / "version")
    monkeypatch.setattr(checkup, "find_spec", lambda name: None)
    assert nvidia_driver() == version
    status, page = doctor()
    assert status == 0
    assert f"NVIDIA driver {version}" in page
    assert f"there is an NVIDIA driver: pip install 'ggrun[{extra}]' to use its cards" in page
