"""Options of the tests."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device", choices=("emulator", "cuda"), default="emulator", help="where tests/cuda runs kernels"
    )
