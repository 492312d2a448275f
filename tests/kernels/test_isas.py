"""The tests of formats and of the SIMD vocabulary with the instructions of lesser CPUs.

In a process of their own: GGRUN_SIMD is read when the kernels are imported.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ggrun.kernels import load_cpu
from tests.kernels.test_formats import FORMATS

HERE = Path(__file__).parent
TESTS = ("test_formats", "test_columns", "test_simd", "test_functions", "test_dots", "test_guards")
SHAPES = ["F16", "IQ3_S", "Q4_0", "Q4_1", "Q8_0", "Q4_K", "IQ4_XS", "Q2_K", "Q6_K"]
"""A format for each shape of code: floats, and what is made to floats; blocks with an offset, with minima and
signed; superblocks with minima and signed, from a table; those of half blocks, with minima and an offset."""


def run(isa: str, *arguments: str) -> None:
    own = load_cpu("llvm_ir").ISA
    if own in (isa, "portable"):
        pytest.skip(f"these tests ran with {own} already, and this CPU may have no more")
    tests = [str(HERE / f"{name}.py") for name in TESTS]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests, *arguments]
    run = subprocess.run(command, env=os.environ | {"GGRUN_SIMD": isa}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_other_instructions() -> None:
    """What formats share, and each shape of their code; portable instructions are for the slow run."""
    others = [f"[{name}" for name in FORMATS if name not in SHAPES]
    run("avx2", "-k", f"not ({' or '.join(others)})")


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["avx2", "portable"])
def test_other_instructions_with_every_format(isa: str) -> None:
    run(isa)
