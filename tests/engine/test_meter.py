"""Where the time goes, in virtual time: exact."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ggrun import GgrunError
from ggrun.arch.config import Config
from ggrun.devices.base import Device
from ggrun.devices.cpu import Cpu
from ggrun.devices.emulated import COPY, LAUNCH, Emulated
from ggrun.devices.late import Schedule
from ggrun.devices.streams import Inline, Stream, Threaded
from ggrun.engine.engine import Engine
from ggrun.engine.meter import Meter, Spent
from ggrun.gguf import GGUF
from ggrun.plan.usage import Sizes
from tests.plans import Plans
from tests.tiny import Tiny

NAMES = ("a", "b", "c", "d")
TOKENS = [i % 50 for i in range(8)]


@pytest.fixture
def model(tmp_path: Path) -> GGUF:
    return GGUF(Tiny(layers=4).write(tmp_path / "model.gguf"))


def engine_of(model: GGUF, kind: str, meter: Meter | None) -> Engine:
    schedule = Schedule()
    devices: dict[str, Device] = {name: Emulated(name, None, schedule) for name in NAMES}
    plan = Plans(model, NAMES)[kind]
    engine = Engine(model, Config.from_gguf(model), plan, devices, Sizes(64, 8), meter=meter)
    for device in devices.values():
        device.stream.synchronize()
    return engine


def metered(model: GGUF, kind: str) -> tuple[Engine, Meter]:
    meter = Meter()
    return engine_of(model, kind, meter), meter


def test_stages(model: GGUF) -> None:
    """Of two stages each has one program; the first copies to the second, which copies to the host."""
    engine, meter = metered(model, "layer 2")
    for times in (1, 2):
        engine.decode(TOKENS)
        for name in "ab":
            assert meter.spent[name, Spent.WORK] == pytest.approx(times * LAUNCH)
            assert meter.spent[name, Spent.COPIES] == pytest.approx(times * COPY)
            assert meter.share(name, Spent.SUMS) == 0
    # One after the other: two copies between them, within the first and the second, and one to the host.
    assert meter.seconds == pytest.approx(2 * (2 * LAUNCH + 3 * COPY))
    assert meter.share("a", Spent.WORK) == pytest.approx(LAUNCH / (2 * LAUNCH + 3 * COPY))
    assert meter.share("elsewhere", Spent.WORK) == 0
    meter.clear()
    assert meter.share("a", Spent.WORK) == 0


def test_sums_are_no_work(model: GGUF) -> None:
    """Two in each of 4 layers: as many programs, and one more; a sum is a copy and an addition."""
    engine, meter = metered(model, "row 2")
    engine.decode(TOKENS)
    meter.seconds = 1.0
    for name in "ab":
        assert meter.spent[name, Spent.WORK] >= 9 * LAUNCH
        assert meter.share(name, Spent.WORK) == pytest.approx(9 * LAUNCH)
        assert meter.share(name, Spent.SUMS) == pytest.approx(8 * (COPY + LAUNCH))


def test_measuring_changes_nothing(model: GGUF) -> None:
    for kind in ("layer 2", "row 2", "everything"):
        measured, meter = metered(model, kind)
        plain = engine_of(model, kind, None)
        np.testing.assert_array_equal(measured.decode(TOKENS), plain.decode(TOKENS))
        assert meter.seconds > 0


def test_what_went_wrong_is_not_counted(model: GGUF, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, meter = metered(model, "layer 2")

    def fail(*_: object) -> None:
        raise GgrunError("no")

    with monkeypatch.context() as patch:
        patch.setattr(Emulated, "download", fail)
        with pytest.raises(GgrunError):
            engine.decode(TOKENS)
    assert meter.spent == {}
    engine.cache.truncate(0, 0)
    engine.decode(TOKENS)
    assert meter.spent["a", Spent.WORK] == pytest.approx(LAUNCH)


@pytest.mark.parametrize("make", [Inline, lambda: Threaded("a"), lambda: Cpu(1).stream])
def test_streams_of_the_host_have_its_clock(make: Callable[[], Stream]) -> None:
    stream, total = make(), []
    begin = stream.mark()
    stream.enqueue(lambda: total.append(sum(range(300_000))))
    end = stream.mark()
    stream.synchronize()
    assert total
    assert end.since(begin) > 1e-4
    assert begin.since(begin) == 0
    stream.close()
