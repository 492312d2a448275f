"""The tests of formats and of the SIMD vocabulary with the instructions of lesser CPUs.

In a process of their own: GGRUN_SIMD is read when the kernels are imported.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ggrun.kernels import load_cpu

HERE = Path(__file__).parent


@pytest.mark.parametrize("isa", ["avx2", "portable"])
def test_other_instructions(isa: str) -> None:
    own = load_cpu("llvm_ir").ISA
    if own in (isa, "portable"):
        pytest.skip(f"these tests ran with {own} already, and this CPU may have no more")
    names = ("test_formats", "test_columns", "test_simd", "test_functions", "test_dots", "test_guards")
    tests = [str(HERE / f"{name}.py") for name in names]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    run = subprocess.run(command, env=os.environ | {"GGRUN_SIMD": isa}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
