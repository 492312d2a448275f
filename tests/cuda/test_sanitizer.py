"""The kernels once with AddressSanitizer: one order of threads, every format; in a process of their own."""

import os
from pathlib import Path

import pytest

from tools.cuda_emulator.build import SANITIZE, compiler
from tools.cuda_emulator.sanitize import environment, run

HERE = Path(__file__).parent

pytestmark = [
    pytest.mark.skipif("config.getoption('device') == 'cuda'"),
    pytest.mark.skipif(SANITIZE in os.environ, reason="runs with it already"),
]


@pytest.fixture(scope="module", autouse=True)
def _library() -> None:
    if not Path(environment()["LD_PRELOAD"]).is_absolute():
        pytest.skip(f"{compiler()} has no AddressSanitizer")


CHOSEN = "(800-random or every_format) and not closer_than_by_tiles and not (test_matmul and 750)"
"""Not twice what differs in no access to memory: what cuBLAS is compared with, Turing's smaller products."""


def test_kernels_are_clean() -> None:
    done = run(str(HERE), "-k", CHOSEN, "-n", "2", "--dist", "loadfile")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


def test_a_byte_too_far_is_found() -> None:
    """What the emulator alone takes for slack."""
    done = run(str(HERE / "test_emulator.py"), "-k", "slack")
    assert done.returncode != 0
    assert "AddressSanitizer: use-after-poison" in done.stderr
    assert "in read_past" in done.stderr
