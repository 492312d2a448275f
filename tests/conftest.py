"""Options of the tests."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says more of the machine and its other work than of what is tested.
settings.register_profile("ggrun", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ggrun")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device", choices=("emulator", "cuda"), default="emulator", help="where tests/cuda runs kernels"
    )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more than processors: some tests wait, for workers and for what hangs, and leave one idle."""
    return len(os.sched_getaffinity(0)) + 1


@pytest.fixture(scope="session", autouse=True)
def _no_crew() -> Iterator[None]:
    """Kernels are compiled by the process that tests: others, which have to start, find no processor free."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ggrun.devices.cpu_recorder.compile_together", lambda kernels, processes: None)
        yield
