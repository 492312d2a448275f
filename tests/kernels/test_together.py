"""Kernels that several processes compile are found by the one that asked, also when some of them fail."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import ggrun.devices.cpu_recorder as recorder
from ggrun import LLM, kernels
from ggrun.bundled import demo_model
from ggrun.kernels import together
told, missing = [], []
{spoil}

def compile_together(wanted, processes):
    together.compile_together(wanted, {processes})
    missing.extend({{kernel.name for kernel in wanted if not kernel.is_kept}})

recorder.compile_together = compile_together
with kernels.watch(told.append), LLM(demo_model(), threads=1) as llm:
    text = "".join(llm.generate("The king ordered the", temp=0.0, max_tokens=4))
print(len(told), len(set(told)), len(missing), text, sep="|")
"""
ONE_TASK = "import sys, itertools; sys.stdin = itertools.islice(sys.stdin, 1); serve()"
SPOIL = {
    "none": "",
    "ends at once": "together._CREW = 'import sys; sys.exit(3)'",
    "ends after a task": f"together._CREW = together._CREW.replace('serve()', {ONE_TASK!r})",
}


def start(folder: Path, spoil: str, processes: int = 2) -> tuple[int, int, int, str]:
    script = SCRIPT.format(spoil=SPOIL[spoil], processes=processes)
    environment = {**os.environ, "GGRUN_CACHE": str(folder), "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    told, different, missing, text = run.stdout.strip().split("|")
    return int(told), int(different), int(missing), text


@pytest.mark.parametrize("spoil", SPOIL)
def test_a_first_start(tmp_path: Path, spoil: str) -> None:
    told, different, missing, text = start(tmp_path, spoil)
    assert told == different > 10  # each is told of once, whoever compiled it
    assert (missing == 0) == (spoil == "none")
    assert start(tmp_path, "none") == (0, 0, 0, text)


def test_one_process_compiles_by_itself(tmp_path: Path) -> None:
    told, different, missing, _ = start(tmp_path, "none", processes=1)
    assert told == different == missing > 10
