"""Options of the tests."""

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says more of the machine and its other work than of what is tested.
settings.register_profile("ggrun", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ggrun")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device", choices=("emulator", "cuda"), default="emulator", help="where tests/cuda runs kernels"
    )
