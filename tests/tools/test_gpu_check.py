"""The GPU check, without a GPU: all of it on the emulator, and each of its parts where things go wrong."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from shutil import which
from typing import Any

import numpy as np
import psutil
import pytest
from gguf import GGMLQuantizationType

from ggrun import LLM, GgrunError
from ggrun.devices.cuda.found import Cards
from ggrun.plan.shapes import SHAPES
from tests.tiny import Tiny
from tests.waiting import PATIENCE, until
from tools import gpu_check, gpu_report, gpu_tests
from tools.cuda_emulator.build import compiler
from tools.gpu_bars import BARS, MET, NOT_MEASURED, NOT_MET, verdicts
from tools.gpu_check import Child
from tools.gpu_report import Outcome
from tools.gpu_step import ROOT, Figure, OutOfTimeError, Step, figures
from tools.gpu_work import prefill_operations

pytestmark = pytest.mark.skipif(not which(compiler()), reason=f"the emulator needs {compiler()}")


def write_peer(folder: Path) -> None:
    """A peer whose logits are ours, on the CPU."""
    tokens = np.arange(20) % 50
    kinds = {"archs/one": GGMLQuantizationType.F32, "quants/two": GGMLQuantizationType.Q8_0}
    for name, kind in kinds.items():
        path = folder / f"{name}.gguf"
        path.parent.mkdir()
        Tiny(layers=2, format=kind).write(path)
        with LLM(path, n_ctx=64, threads=1, devices="cpu") as llm:
            logits = llm.logits(tokens.tolist())
        noise = np.random.default_rng(1).normal(0, 0.1, logits.shape).astype(np.float32)
        np.savez(path.with_suffix(".npz"), tokens=tokens, logits=logits + noise * (kind != 0), exact=logits)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, str]:
    """The two pages, and what was printed."""
    folder = tmp_path_factory.mktemp("check")
    write_peer(folder)
    command = [
        sys.executable,
        str(ROOT / "tools" / "gpu_check.py"),
        "--emulated",
        "--minutes",
        "90",
        "--out",
        str(folder / "out"),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "GGRUN_PEER": str(folder)}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    page = json.loads((folder / "out" / "gpu_check.json").read_text())
    return page, (folder / "out" / "gpu_check.md").read_text(), done.stdout


Pages = tuple[dict[str, Any], str, str]
HOUR = 3600.0


def test_every_step_is_done(whole: Pages) -> None:
    page, markdown, printed = whole
    assert {step["name"]: step["word"] for step in page["steps"]} == dict.fromkeys(
        [*gpu_check.STEPS, "models"], "done"
    )
    assert [f for step in page["steps"] for f in step["figures"] if f["error"]] == []
    for step in gpu_check.STEPS:
        assert f"\n## {step}\n" in markdown
    assert "| kernels | done |" in printed


def test_the_emulators_times_are_not_taken_for_a_cards(whole: Pages) -> None:
    page, markdown, printed = whole
    assert page["emulated"] is True
    assert page["card"]["name"] == "the emulator"
    assert {bar["word"] for bar in page["bars"]} == {NOT_MEASURED}
    for text in (markdown, printed):
        assert "No card was used" in text
        assert "means nothing" in text
        assert "| met |" not in text


def test_figures_have_a_value_and_a_method(whole: Pages) -> None:
    page, *_ = whole
    found = {f["what"]: f for step in page["steps"] for f in step["figures"]}
    for what, figure in found.items():
        if what != "card":
            assert figure["value"] is not None, what
            assert figure["how"], what
    assert found["attention decode f16, 1 token at 100"]["of"] == "copy bandwidth"
    assert found["matmul Q4_K 64x256, 16 columns"]["of"] == "bf16 matrix rate"
    assert 0 < found["matvec Q4_K 64x256, 1 column"]["more"]["relative error"] < 0.02
    assert found["matvec_experts, 1 token, 2 of 8 experts, Q4_K"]["more"]["inputs"] == 4
    assert found["one, two logical devices, by layer"]["value"] < 1e-6
    assert len([what for what in found if what.startswith("loss of two logical devices")]) == 4
    assert len([what for what in found if what.startswith("two logical devices of 24 GB, -sm row")]) == 2
    for bar in BARS:
        assert any(what.startswith(bar.figure) for what in found), bar


# ---------------------------------------------------------------- what goes wrong


def step(tmp_path: Path, seconds: float = HOUR, **settings: Any) -> Step:
    return Step({"emulated": True, "seconds": seconds, "known": {}, **settings}, tmp_path / "results.jsonl")


def told(of: Step) -> list[Figure]:
    return figures(of._results)


TESTS = """
import os, time, pytest

def test_passes(): pass
def test_fails(): assert 1 == 2, "a|b"
def test_skips(): pytest.skip("not here")
def test_crashes(): os.kill(os.getpid(), 9)
def test_loses_the_card(): raise RuntimeError("cudaErrorIllegalAddress: an illegal memory access")
def test_passes_too(): pass
"""


def run_tests(tmp_path: Path, text: str, kind: type[Step] = Step) -> list[Figure]:
    path = tmp_path / "test_some.py"
    path.write_text(text)
    tests = ["-p", "tests.conftest", str(path)]
    running = kind(settings(HOUR) | {"tests": tests}, tmp_path / "results.jsonl")
    gpu_tests.run(running)
    return told(running)


def test_tests_go_on_behind_one_that_crashes(tmp_path: Path) -> None:
    summary, *rest = run_tests(tmp_path, TESTS)
    assert (summary.what, summary.value) == ("tests passed, of 6", 2)
    assert summary.error == "2 failed; 1 crashed their process, or were running when the time was up"
    lines = {figure.what.rpartition("::")[2]: figure.error or figure.how for figure in rest}
    assert lines["test_fails"].startswith("test_some.py:5: AssertionError: a|b")
    assert "an illegal memory access" in lines["test_loses_the_card"]
    assert "its process crashed" in lines["test_crashes"]
    assert lines["skipped tests"] == "not here"


def test_tests_that_hang_are_ended(tmp_path: Path) -> None:
    begun = tmp_path / "begun"

    class UntilItHangs(Step):
        left = property(lambda _: 0.0 if begun.exists() and begun.read_text() else 1.0)

    hang = f"def test_b(): open({str(begun)!r}, 'w').write(str(os.getpid())); time.sleep(1 << 20)"
    text = f"import os, time\ndef test_a(): pass\n{hang}\ndef test_c(): pass"
    summary, hanging = run_tests(tmp_path, text, UntilItHangs)
    assert not psutil.pid_exists(int(begun.read_text()))
    assert (summary.what, summary.value) == ("tests passed, of 3", 1)
    assert "1 were not reached in time" in summary.error
    assert hanging.what.endswith("test_b")


def test_tests_that_cannot_begin(tmp_path: Path) -> None:
    summary, *_ = run_tests(tmp_path, "import nothing_of_that_name")
    assert "status 2" in summary.error


def settings(seconds: float) -> dict[str, Any]:
    return {"emulated": True, "seconds": seconds, "known": {}, "models": [], "card_bytes": 1}


def test_a_step_that_crashes(tmp_path: Path) -> None:
    found = Child("nothing_of_that_name", settings(HOUR), tmp_path).outcome()
    assert found.word == "failed"
    assert "ModuleNotFoundError" in found.note


def hanging(name: str, begun: Path) -> str:
    """What to add to PYTHONPATH so that a step hangs before it does anything, when it has made a folder."""
    hang = f"""
import os, sys, time
if {{"tools.gpu_step", {name!r}}} <= set(sys.orig_argv):
    os.mkdir({str(begun)!r})
    time.sleep(1 << 20)
"""
    begun.with_name("sitecustomize.py").write_text(hang)
    return os.pathsep.join([str(begun.parent), os.environ.get("PYTHONPATH", "")])


def test_a_step_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", hanging("ceilings", tmp_path / "begun"))
    child = Child("ceilings", settings(0.5), tmp_path)
    child.results.write_text('{"what": "a", "value": 1.0}\n{"what": "b", "val')
    found = child.outcome()
    assert (found.word, found.figures[0]) == ("out of time", Figure("a", 1.0))
    assert found.seconds >= 0.5
    assert child._process.poll() is not None


def test_steps_that_there_is_no_time_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu_check.main(["--emulated", "--out", str(tmp_path), "--minutes", "0.1"])
    page = json.loads((tmp_path / "gpu_check.json").read_text())
    assert {s["word"] for s in page["steps"] if s["name"] != "models"} == {"skipped"}
    assert "were left of --minutes" in page["steps"][1]["note"]
    assert "| bench | skipped |" in capsys.readouterr().out


def test_an_interrupt_leaves_pages_and_nothing_else(tmp_path: Path) -> None:
    scratch, begun = tmp_path / "scratch", tmp_path / "begun"
    scratch.mkdir()
    paths = hanging("load", begun)
    running = subprocess.Popen(
        [
            *(sys.executable, "-m", "tools.gpu_check", "--emulated", "--minutes", "90"),
            *("--steps", "peer,load", "--out", str(tmp_path / "out"), "--scratch", str(scratch)),
        ],
        cwd=ROOT, env={**os.environ, "GGRUN_PEER": str(ROOT / "tests"), "PYTHONPATH": paths},
    )  # fmt: skip
    until(begun.exists)
    until(lambda: psutil.Process(running.pid).status() == psutil.STATUS_SLEEPING)  # it waits for the step
    running.send_signal(signal.SIGTERM)
    running.communicate(timeout=PATIENCE)
    assert running.returncode == 130
    page = json.loads((tmp_path / "out" / "gpu_check.json").read_text())
    words = [(s["name"], s["word"]) for s in page["steps"]]
    assert words[:3] == [("ceilings", "done"), ("peer", "done"), ("load", "interrupted")]
    assert list(scratch.iterdir()) == []
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["gpu_check.json", "gpu_check.md"]


def test_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running = step(tmp_path)
    assert list(running.lines([sys.executable, "-c", "print(1); print(2)"])) == ["1\n", "2\n"]
    with pytest.raises(RuntimeError, match=r"^status 3: no room$"):
        list(
            running.lines(
                [sys.executable, "-c", "import sys; print('no room', file=sys.stderr); sys.exit(3)"]
            )
        )
    up = threading.Event()

    class Clock(threading.Timer):
        def run(self) -> None:
            up.wait(PATIENCE)
            self.function()

    monkeypatch.setattr("tools.gpu_step.threading.Timer", Clock)
    late = running.lines([sys.executable, "-c", "import time; print(1, flush=True); time.sleep(99)"])
    assert next(late) == "1\n"
    up.set()
    with pytest.raises(OutOfTimeError):
        next(late)


def test_what_goes_wrong_is_one_line(tmp_path: Path) -> None:
    def fail(error: Exception) -> None:
        raise error

    running = step(tmp_path)
    running.attempt("a", lambda: fail(GgrunError("no memory\nfor it")), "a method")
    running.attempt("b", lambda: fail(ValueError()))
    step(tmp_path, 1).attempt("c", lambda: pytest.fail("there is no time for it"))
    errors = [figure.error for figure in told(running)]
    assert errors == ["no memory for it", "ValueError", "not reached: the step's time was used up"]


# ---------------------------------------------------------------- pages


def test_bars() -> None:
    def words(**shares: float) -> dict[str, str]:
        names = {bar.figure.replace(", ", "_").replace(" ", "_"): bar.figure for bar in BARS}
        found = verdicts([Figure(f"{names[name]}, more", 1.0, share=x) for name, x in shares.items()], False)
        return {bar.figure: v.word for bar, v in zip(BARS, found, strict=True)}

    assert set(words().values()) == {NOT_MEASURED}
    assert words(decode_8B_Q4_K_M=0.7)["decode, 8B Q4_K_M"] == MET
    assert words(decode_8B_Q4_K_M=0.6999)["decode, 8B Q4_K_M"] == NOT_MET
    assert words(decode_8B_Q8_0=float("nan"))["decode, 8B Q8_0"] == NOT_MET
    assert words(loss_of_two_logical_devices_decode=0.03)["loss of two logical devices, decode"] == MET
    assert words(loss_of_two_logical_devices_decode=-0.1)["loss of two logical devices, decode"] == MET
    assert words(loss_of_two_logical_devices_decode=0.04)["loss of two logical devices, decode"] == NOT_MET
    failed = Figure(BARS[0].figure, error="out of memory")
    assert verdicts([failed], False)[0].word == NOT_MEASURED


def test_of_several_settings_the_best_counts_and_of_losses_the_worst() -> None:
    prefill, loss = BARS[3], BARS[4]
    found = verdicts([Figure(prefill.figure, share=x) for x in (0.4, 0.5)], False)
    assert (found[3].found, found[3].word) == (0.5, MET)
    found = verdicts([Figure(loss.figure, share=x) for x in (0.01, 0.05)], False)
    assert (found[4].found, found[4].word) == (0.05, NOT_MET)


def test_operations_of_a_prompt() -> None:
    """6.98e9 parameters in the layers of Llama 3 8B, 0.5e9 in the output matrix."""
    wide = prefill_operations(SHAPES["llama-3-8b"], 1)
    assert wide == 2 * (6_979_321_856 + 128256 * 4096) + 4 * 32 * 4096
    pairs = 2048 * 2049 // 2
    assert prefill_operations(SHAPES["llama-3-8b"], 2048) == (
        2 * (2048 * 6_979_321_856 + 128256 * 4096) + 4 * 32 * 4096 * pairs
    )


def test_the_page() -> None:
    outcomes = [
        Outcome("ceilings", "done", 3, 30, "", [Figure("card", more={"name": "H|1", "CuPy": "14"})]),
        Outcome("bench", "out of time", 9, 10, "killed", [
            Figure("decode, 8B Q4_K_M", 123.456, "t/s", 0.71, "copy bandwidth", "a | b", more={"x": 1.5}),
            Figure("decode, 70B Q4_K_M", how="a | b", error="does not\nfit | at all"),
        ]),
    ]  # fmt: skip
    page = gpu_report.markdown(False, {"date": "today"}, outcomes)
    assert page.startswith("# GPU check: H|1, today\n")
    assert "| decode of 8B Q4_K_M: 70 % of the copy bandwidth | 71.0 % | met |" in page
    assert "| bench | out of time | 9 of 10 | 2 | 1 | killed |" in page
    assert "| decode, 8B Q4_K_M | 123 t/s | 71.0 % of copy bandwidth | x 1.5 | [1] |" in page
    assert "| decode, 70B Q4_K_M |  |  | **does not fit / at all** | [1] |" in page
    assert page.count("\n1. a | b") == 1
    assert "emulator" not in page


# ---------------------------------------------------------------- users


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def none() -> Cards:
        raise GgrunError("CUDA devices need CuPy, which is not installed")

    monkeypatch.setattr(Cards, "found", none)
    with pytest.raises(SystemExit) as ended:
        gpu_check.main(["--out", str(tmp_path / "out")])
    assert ended.value.code == "gpu_check: no GPU to check: CUDA devices need CuPy, which is not installed"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "--out"),
        (["--out", "a", "--steps", "tests,bech"], "'bech': there are ceilings, tests, peer"),
        (["--out", "a", "--minutes", "0"], "not between 0 and 600"),
        (["--out", "a", "--minutes", "some"], "invalid"),
    ],
)
def test_arguments_that_make_no_sense(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        gpu_check.main(options)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_what_all_are_shares_of_is_always_measured() -> None:
    assert gpu_check.arguments(["--out", "a", "--steps", "load,kernels"]).steps == [
        "ceilings",
        "kernels",
        "load",
    ]
