"""This machine's devices: measured once, kept, and measured again where what was kept makes no sense."""

from dataclasses import replace
from pathlib import Path

import pytest

from ggrun.devices import local, speeds
from ggrun.devices.cpu import Cpu
from ggrun.devices.host_memory import HostMemory
from ggrun.devices.local import local_cpu, local_devices, named_devices, planned_here
from ggrun.errors import UsageError
from ggrun.plan.facts import ModelFacts
from ggrun.plan.hardware import DeviceInfo, parse_devices
from ggrun.plan.mixes import outline
from ggrun.plan.options import PlanOptions
from ggrun.plan.report import DoesNotFit
from tests.kept import another_process, nothing_kept

OPERATIONS = speeds._operations
SPEEDS = '{"bandwidth": %s, "operations": 0.0, "float_operations": 0.0, "link": 0.0, "unpacked": 0.0}'


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often the bandwidth was measured; each time the memory is faster. Products have one speed."""
    runs: list[int] = []

    def bandwidth(self: Cpu) -> float:
        runs.append(self.pool.threads)
        return 1e9 * len(runs)

    nothing_kept(monkeypatch, tmp_path)
    monkeypatch.setattr(Cpu, "bandwidth", bandwidth)
    monkeypatch.setattr(speeds, "_operations", lambda device, kind, size, rows: 1e10)
    monkeypatch.setattr(speeds, "_PAUSE", 0)
    return runs


def test_measured_once_and_kept(measured: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    """And told, as it takes a while."""
    assert local_cpu(1).bandwidth == local._BANDWIDTH
    assert measured == []
    assert not capsys.readouterr().err
    first = local_cpu(1, measure=True)
    assert (first.bandwidth, measured) == (4e9, [1, 1, 1, 1])  # the best of them
    assert "measuring how fast this machine's CPU is: once" in capsys.readouterr().err
    another_process()
    assert local_cpu(1, measure=True).bandwidth == local_cpu(1).bandwidth == 4e9
    assert len(measured) == 4
    assert not capsys.readouterr().err
    assert local_cpu(2, measure=True).bandwidth == 8e9  # threads have speeds of their own


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", "[" * 100_000, '{"bandwidth": "x"}', SPEEDS % "-1", SPEEDS % "0", SPEEDS % "NaN",
        SPEEDS % "Infinity", SPEEDS % ("9" * 400), SPEEDS.replace("0.0", "NaN") % "1",
    ],
)  # fmt: skip
def test_what_was_kept_may_be_damaged(text: str, measured: list[int], tmp_path: Path) -> None:
    local_cpu(1, measure=True)
    (file,) = (tmp_path / "hardware").iterdir()
    file.write_text(text)
    another_process()
    assert local_cpu(1).bandwidth == local._BANDWIDTH
    assert local_cpu(1, measure=True).bandwidth == 8e9


def test_a_cache_that_cannot_be_written(measured: list[int], tmp_path: Path) -> None:
    (tmp_path / "hardware").write_text("a file")
    assert local_cpu(1, measure=True).bandwidth == 4e9
    assert local_cpu(1).bandwidth == local_cpu(1, measure=True).bandwidth == 4e9  # this process knows
    assert len(measured) == 4


def test_names(measured: list[int]) -> None:
    (cpu,) = local_devices("cpu", 1)
    assert 0 < cpu.free <= cpu.memory
    a, b = named_devices(["cpu:0:2GiB", "cpu"], 1)
    assert (a.name, a.free, b.name, b.free > 0) == ("cpu:0:2GiB", 2 << 30, "cpu", True)


def test_only_more_is_remembered(measured: list[int]) -> None:
    local.remember(1, 5e9)  # a bandwidth alone is not all that has to be known
    assert not local.here_is_known(1)
    rate = local_cpu(1, measure=True).operations
    for bandwidth, kept in ((4.3e9, 4.3e9), (4e9, 4.3e9), (4.5e9, 4.5e9)):
        local.remember(1, bandwidth)
        assert (local_cpu(1).bandwidth, local_cpu(1).operations) == (kept, rate)
    local.remember(1, 6e9)  # others were running when the rest was measured
    assert not local.here_is_known(1)


def test_the_rate_of_products_is_measured(measured: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speeds, "_operations", OPERATIONS)
    assert 1e9 < local_cpu(1, measure=True).operations < 1e14
    assert 1e8 < local_cpu(1, measure=True).float_operations < 1e13
    assert 1e7 < local_cpu(1, measure=True).unpacked < 1e12


@pytest.mark.parametrize("devices", ["cpu:0:4GB,cpu:1:4GB", "emulated:0:4GB,cpu:1:4GB", "cpu:0:4GB,cpu"])
def test_what_pretends_to_be_cards_shares_the_memory_of_the_machine(
    devices: str, measured: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = ModelFacts.from_outline(outline("llama-3-8b", "Q4_K_M"))
    options = PlanOptions(n_ctx=512, n_gpu_layers=24 if devices.endswith("cpu") else "auto")
    monkeypatch.setattr(local, "host_memory", lambda: HostMemory(64 << 30, 8 << 30))
    assert planned_here(facts, devices, 1, options).fits
    monkeypatch.setattr(local, "host_memory", lambda: HostMemory(64 << 30, 5 << 30))
    with pytest.raises(DoesNotFit, match="and may take"):
        planned_here(facts, devices, 1, options)
    planned_here(facts, devices, 1, replace(options, fit=False))


@pytest.mark.parametrize(
    "devices", ["cpu:0", "emulated", "emulated,cpu", "cpu:0:9GB,cpu:1:9GB", "cpu:64GB", "cpu"]
)
def test_an_open_context_is_what_the_machine_has_room_for(
    devices: str, measured: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = ModelFacts.from_outline(outline("llama-3.1-8b", "Q4_K_M"))
    monkeypatch.setattr(local, "host_memory", lambda: HostMemory(64 << 30, 9 << 30))
    planned = planned_here(facts, devices, 1, PlanOptions())
    assert planned.fits
    assert 4096 <= planned.sizes.n_ctx < 131072
    assert sum(use.total for use in planned.uses.values()) <= 8 << 30


def test_what_the_cpu_leaves_to_cards_is_not_guessed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int | None] = []

    def measure(threads: int | None) -> speeds.Speeds:
        measured.append(threads)
        return speeds.Speeds(4e9, 1e11)

    nothing_kept(monkeypatch, tmp_path)
    monkeypatch.setattr(local, "measured_cpu", measure)
    facts = ModelFacts.from_outline(outline("llama-3-8b", "Q4_K_M"))
    (card,) = parse_devices("rtx3090")
    monkeypatch.setattr("ggrun.devices.cuda.local.local_card", lambda index: card)
    monkeypatch.setattr(local, "host_memory", lambda: HostMemory(64 << 30, 32 << 30))
    options = PlanOptions(n_ctx=512, n_cpu_ffn=8)
    planned_here(facts, "cuda:0,cpu", 1, replace(options, op_offload=False))
    planned_here(facts, "cuda:0,cpu", 1, replace(options, n_cpu_ffn=0))
    assert measured == []
    planned = planned_here(facts, "cuda:0,cpu", 1, options)
    assert measured == [1]
    assert planned.devices[1].bandwidth == 4e9
    assert planned.offloads
    planned_here(facts, "cuda:0,cpu", 1, options)
    assert measured == [1]


def test_the_names_of_a_plan_are_those_of_devices() -> None:
    for names in (["CPU"], ["cuda"], ["cpu:0:2GB", "cpu:0"], ["cpu,cpu:1"]):
        with pytest.raises(UsageError):
            named_devices(names, 1)


def test_margins_go_by_the_order_in_which_devices_are_listed(measured: list[int]) -> None:
    """Those of other machines come first, as they do in the plan."""
    facts = ModelFacts.from_outline(outline("tinyllama-1.1b", "Q4_K_M"))
    there = DeviceInfo("spare:1/cpu", 8 << 30, 8 << 30, 1e10, 1e11, 1e10, network=1e9, latency=1e-4)
    options = PlanOptions(n_ctx=512, fit_margin=[7168, 512, 2048])
    planned = planned_here(facts, "cpu:0:4GB,cpu", 1, options, remote=[there])
    assert planned.limits["spare:1/cpu"] == 1 << 30
    own = next(device for device in planned.devices if device.name == "cpu")
    assert planned.limits["cpu"] == max(0, own.free - (2048 << 20))
    with pytest.raises(UsageError, match="-fitt gives 4 numbers for 3 devices"):
        planned_here(facts, "cpu:0:4GB,cpu", 1, replace(options, fit_margin=[1] * 4), remote=[there])
