"""From how many rows on cuBLAS is taken: measured once a kind of card, kept, measured again if damaged."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ggrun import GgrunError
from ggrun.devices import open_devices
from ggrun.devices.base import Device
from ggrun.devices.cuda import local, switch_over
from ggrun.devices.cuda.device import Cuda
from ggrun.devices.cuda.found import Cards
from ggrun.devices.cuda.gemm import PIECES, GemmFrom
from ggrun.devices.cuda.switch_over import measured_gemm
from ggrun.devices.local import local_devices
from ggrun.plan.hardware import Speeds
from tests.cuda.fake_cupy import FakeCupy
from tests.kept import another_process, nothing_kept
from tools.cuda_emulator.driver import EmulatedDriver

FOUND = GemmFrom(512, 0, 64)


@pytest.mark.parametrize(
    ("gemm", "tiles", "found"),
    [
        ((4, 4, 4, 4), (1, 2, 3, 5), 64),  # seconds for 16, 24, 32 and 64 rows
        ((4, 4, 4, 4), (1, 5, 3, 5), 64),  # once more than it should
        ((4, 4, 4, 4), (5, 5, 5, 5), 16),
        ((4, 4, 4, 4), (1, 5, 5, 5), 24),
        ((4, 4, 4, 4), (5, 5, 5, 4), 0),  # it is not faster where it matters most
    ],
)
def test_the_fewest_rows_from_which_on_it_is_always_faster(
    gemm: tuple[int, ...], tiles: tuple[int, ...], found: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = (16, 24, 32, 64)
    monkeypatch.setattr(switch_over, "_ROWS", rows)
    monkeypatch.setattr(switch_over, "_PROMPT", 24)
    monkeypatch.setattr(switch_over, "_MATRIX", 256)
    monkeypatch.setattr(switch_over, "_PRODUCTS", 1)
    device = Cuda(EmulatedDriver(), "card")
    launched: list[str] = []
    launch, product = device.driver.launch, device.driver.gemm
    monkeypatch.setattr(device.driver, "launch", lambda k, *a: (launched.append(k.name), launch(k, *a)))
    monkeypatch.setattr(device.driver, "gemm", lambda p: (launched.append(f"gemm {p.n}"), product(p)))

    def seconds(device: Device, work: Callable[[], None], times: int) -> float:
        launched.clear()
        work()
        device.stream.synchronize()
        if products := [name for name in launched if name.startswith("gemm")]:
            rows_now.append(int(products[0].split()[1]))
            return gemm[rows.index(rows_now[-1])]
        return tiles[rows.index(rows_now[-1])]

    rows_now: list[int] = []
    monkeypatch.setattr(switch_over, "least_seconds", seconds)
    assert measured_gemm(device) == GemmFrom(found, found, found)
    assert len(rows_now) == 2 + 3 * (len(rows) - rows.index(found or 64) + (found not in (0, 16)))


@pytest.mark.parametrize("faster", PIECES)
def test_the_piece_that_a_prompt_is_fastest_with(faster: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[tuple[int, int]]()

    class Product:
        def __init__(self, device: Cuda, kind: str) -> None: ...

        def seconds(self, n: int, by: GemmFrom) -> float:
            asked.append((n, by.piece))
            return 1.0 if by.piece == faster and by.least else 2.0

    monkeypatch.setattr(switch_over, "_Product", Product)
    found = measured_gemm(Cuda(EmulatedDriver(), "card"))
    assert found.piece == faster
    assert {(512, piece) for piece in PIECES} <= set(asked)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What was measured of a fake card."""
    done: list[str] = []

    def gemm(device: Cuda) -> GemmFrom:
        done.append("gemm")
        return FOUND

    def card(device: Cuda) -> Speeds:
        done.append("speeds" if device.gemm_from == GemmFrom() else "speeds with cuBLAS")
        return Speeds(1e9, 1e10, 1e10, 1e9)

    monkeypatch.setattr(local, "measured_gemm", gemm)
    monkeypatch.setattr(local, "measured_card", card)
    nothing_kept(monkeypatch, tmp_path)
    return done


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> FakeCupy:
    fake = FakeCupy()
    monkeypatch.setitem(sys.modules, "cupy", fake)  # type: ignore[arg-type]
    Cards.found.cache_clear()
    monkeypatch.setattr(Cards, "found", lambda: Cards())
    return fake


def opened(name: str = "cuda:0") -> GemmFrom:
    """What a device of a model takes."""
    device = open_devices([name])[name]
    assert isinstance(device, Cuda)
    device.close()
    return device.gemm_from


def test_measured_once_for_all_cards_of_a_kind(
    cupy: FakeCupy, measured: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert opened() == GemmFrom()
    local.local_card(0)
    assert capsys.readouterr().err.startswith("ggrun: measuring how fast cuda:0 is (")
    local.local_card(0)
    assert not capsys.readouterr().err
    assert measured == ["gemm", "speeds with cuBLAS"]
    local.local_card(1)
    assert measured == ["gemm", "speeds with cuBLAS", "speeds with cuBLAS"]
    assert opened("cuda:0") == opened("cuda:1") == FOUND
    assert cupy.cuda.library.handles == 0


def test_a_cublas_that_fails_is_not_taken(
    cupy: FakeCupy, measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(device: Cuda) -> GemmFrom:
        raise GgrunError("cuda:0: a matrix product: CUBLAS_STATUS_NOT_SUPPORTED")

    monkeypatch.setattr(local, "measured_gemm", fails)
    assert local.local_card(0).operations == 1e10
    assert measured == ["speeds"]
    assert opened() == GemmFrom()


def test_cublas_comes_later_and_goes_again(cupy: FakeCupy, measured: list[str]) -> None:
    library, cupy.cuda.library = cupy.cuda.library, None
    local.local_card(0)
    local.local_card(0)
    assert measured == ["speeds"]
    cupy.cuda.library = library
    local.local_card(0)
    assert measured == ["speeds", "gemm", "speeds with cuBLAS"]
    cupy.cuda.library = None
    local.local_card(0)
    assert opened() == GemmFrom()
    assert len(measured) == 3


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"quantized": 64, "two_scales": 8, "floats": 0}', '{"quantized": true}']
)
def test_what_was_kept_may_be_damaged(
    text: str, cupy: FakeCupy, measured: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local.local_card(0)
    (file,) = (tmp_path / "hardware").glob("gemm-*.json")
    another_process()
    assert opened() == FOUND
    file.write_text(text)
    another_process()
    assert opened() == GemmFrom()
    local.local_card(0)
    assert measured.count("gemm") == 2
    assert opened() == FOUND


def test_a_cache_that_cannot_be_written(cupy: FakeCupy, measured: list[str], tmp_path: Path) -> None:
    (tmp_path / "hardware").write_text("a file")
    local_devices("cuda:0,cpu", 1)
    local_devices("cuda:0,cpu", 1)
    assert measured == ["gemm", "speeds with cuBLAS"]
    assert opened() == FOUND  # this process knows
