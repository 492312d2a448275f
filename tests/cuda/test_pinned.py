"""Rows that go from a card to the CPU: with a CuPy that is the emulator."""

import numpy as np
import pytest

from ggrun.devices import open_devices
from ggrun.devices.base import Limits
from ggrun.devices.cuda.device import Cuda
from tests.cuda.fake_cupy import FakeCupy


def test_the_host_does_not_wait_for_rows_that_go_to_the_cpu(
    cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many: they go to pinned memory, which is kept for the next ones."""
    devices = open_devices(["cpu", "cuda:0"], 1)
    card, cpu = devices["cuda:0"], devices["cpu"]
    assert isinstance(card, Cuda)
    limits = Limits(300, 1, 1, 1)
    of_card, of_cpu = card.recorder(limits), cpu.recorder(limits)
    here, there = of_card.place(of_card.input(512)), of_cpu.place(of_cpu.input(512))
    rng, taken = np.random.default_rng(1), list[int]()
    allocate = card.driver.allocate_on_host
    monkeypatch.setattr(card.driver, "allocate_on_host", lambda n: (taken.append(n), allocate(n))[1])
    monkeypatch.setattr(card.driver, "download", None)  # which waits
    for rows in (10, 300, 300, 7):
        values = rng.standard_normal((rows, 512), np.float32)
        card.write(here, values)
        card.copy(here, rows, cpu, there)
        card.stream.synchronize()
        got = np.empty_like(values)
        cpu.download(there, rows, got)
        cpu.stream.synchronize()
        np.testing.assert_array_equal(got, values)
    assert taken == [10 * 2048, 300 * 2048]
    monkeypatch.undo()
    for device in devices.values():
        device.close()
