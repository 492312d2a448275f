"""Kernels that several processes compile are found by the one that asked, also when some of them fail."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

MODEL = """
import ggrun.devices.cpu_recorder as recorder
from ggrun import LLM, kernels
from ggrun.bundled import demo_model
from ggrun.kernels import together
told, missing = [], []

def compile_together(wanted, processes):
    together.compile_together(wanted, 2)
    missing.extend({kernel.name for kernel in wanted if not kernel.is_kept})

recorder.compile_together = compile_together
with kernels.watch(told.append), LLM(demo_model(), threads=1) as llm:
    text = "".join(llm.generate("The king ordered the", temp=0.0, max_tokens=4))
print(len(told), len(set(told)), len(missing), text, sep="|")
"""
SMALL = """
from ggrun import kernels
from ggrun.kernels import load_cpu, together
told, Kernel = [], load_cpu("runtime").Kernel
modules = [load_cpu(name) for name in ("elementwise", "columns", "cache.f16", "cache.f32")]
wanted = [value for module in modules for value in vars(module).values() if isinstance(value, Kernel)]
{spoil}
with kernels.watch(told.append):
    together.compile_together(wanted, {processes})
    missing = {{kernel.name for kernel in wanted if not kernel.is_kept}}
    addresses = {{kernel.address for kernel in wanted}}
print(len(told), len(set(told)), len(missing), len(addresses), sep="|")
"""
"""Kernels that compile soon, and no model."""
ONE_TASK = "import sys, itertools; sys.stdin = itertools.islice(sys.stdin, 1); serve()"
SPOIL = {
    "none": "",
    "ends at once": "together._CREW = 'import sys; sys.exit(3)'",
    "ends after a task": f"together._CREW = together._CREW.replace('serve()', {ONE_TASK!r})",
}


def start(folder: Path, script: str) -> tuple[int, int, int, str]:
    """Kernels that were told of, different ones, those that the crew did not compile; what came of it."""
    environment = {**os.environ, "GGRUN_CACHE": str(folder), "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    told, different, missing, outcome = run.stdout.strip().split("|")
    return int(told), int(different), int(missing), outcome


def small(spoil: str, processes: int = 2) -> str:
    return SMALL.format(spoil=SPOIL[spoil], processes=processes)


def test_a_first_start(tmp_path: Path) -> None:
    told, different, missing, text = start(tmp_path, MODEL)
    assert told == different > 10
    assert missing == 0
    assert start(tmp_path, MODEL) == (0, 0, 0, text)


@pytest.mark.parametrize("spoil", SPOIL)
def test_a_crew_that_fails(tmp_path: Path, spoil: str) -> None:
    told, different, missing, kernels = start(tmp_path, small(spoil))
    assert told == different == int(kernels) > 10  # each is told of once, whoever compiled it
    assert (missing == 0) == (spoil == "none")
    assert (missing == told) == (spoil == "ends at once")
    assert start(tmp_path, small("none")) == (0, 0, 0, kernels)


def test_one_process_compiles_by_itself(tmp_path: Path) -> None:
    told, different, missing, _ = start(tmp_path, small("none", processes=1))
    assert told == different == missing > 10
