"""ggrun plan, and the placement flags of ggrun run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ggrun.gguf import GGUF
from tests.cli.test_run import complaint, ggrun, here
from tests.tiny import Tiny

TWINS = ("-sm", "row", "-ts", "1,1", "--devices", "cpu:0:1GB,cpu:1:1GB")
TWO = ("--devices", "2x rtx3090, cpu:64GB@50GB/s")
QUIET = ("run", "--no-display-prompt", "--no-show-timings", "--temp", "0", "-n", "12", "-p", "The fox")


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return Tiny(layers=3, context=256).write(tmp_path / "tiny.gguf")


def test_a_shape_on_hardware_that_is_not_here() -> None:
    done = ggrun("plan", "llama-3-70b:Q4_K_M", *TWO, "-c", "8192")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "llama-3-70b:Q4_K_M: 39.59 GiB, 80 layers, context 8192, cache f16"
    bars = [line for line in lines if "[" in line]
    assert len(bars) == 3
    assert {len(line.partition("]")[0]) for line in bars} == {3 + 40}
    assert "  layers 0-39" in lines
    assert "  layers 40-79; output" in lines
    assert "  embedding" in lines
    said = {line.split()[0]: line for line in lines if line and line[0] != " "}
    assert 14 < float(said["decode"].split()[1]) < 19
    assert said["flags"].endswith("-c 8192 -ngl 81 -ts 40,41")
    assert "cuda:1" in said["bottleneck"]
    assert "\x1b" not in done.stdout


def test_a_bar_shows_what_is_what() -> None:
    done = ggrun("plan", "llama-3-8b:F16", "--devices", "rtx3090:24GB", "-c", "16384", "-fitt", "0")
    (bar,) = (line for line in done.stdout.splitlines() if "[" in line)
    assert bar.count("█") == round(40 * 14.96 / 24)
    assert bar.count("▓") == round(40 * 16.96 / 24) - bar.count("█")  # 2 GiB of keys and values


def test_a_file_and_its_header(tiny: Path) -> None:
    whole = ggrun("plan", tiny, "--devices", "cpu:1GB@10GB/s", "-fitt", "0")
    assert whole.returncode == 0
    data = sum(tensor.nbytes for tensor in GGUF(tiny).tensors.values())
    tiny.write_bytes(tiny.read_bytes()[:-data])
    header = ggrun("plan", tiny, "--devices", "cpu:1GB@10GB/s", "-fitt", "0")
    assert (header.returncode, header.stdout) == (0, whole.stdout)
    assert "truncated" in complaint(ggrun(*QUIET, "-m", tiny), 1)


def test_what_does_not_fit_has_a_status_of_its_own() -> None:
    done = ggrun("plan", "llama-3-70b", "--devices", "rtx4090, cpu:64GB@50GB/s", "-ngl", "all")
    assert done.returncode == 3
    assert done.stderr.startswith("ggrun: llama-3-70b:Q4_K_M: does not fit: cuda:0 needs")
    assert "give -ngl auto" in done.stderr
    assert done.stderr.count("\n") == 1
    assert "TOO MUCH" in done.stdout
    asked = ggrun("plan", "llama-3-70b", "--devices", "rtx4090", "--json")
    assert (asked.returncode, asked.stdout) == (3, "")
    asked = ggrun("plan", "llama-3-70b", "--devices", "rtx4090", "--json", "-fit", "off")
    assert (asked.returncode, len(json.loads(asked.stdout)["stages"])) == (3, 1)


def test_a_plan_that_cuts_blocks_or_has_a_device_twice(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    made = json.loads(ggrun("plan", "--json", *TWINS).stdout)
    (stage,) = made["stages"]
    a, b = stage["members"]
    a["ff"][1] = b["ff"][0] = a["ff"][1] + 1
    file.write_text(json.dumps(made))
    assert "inside a block" in complaint(ggrun("plan", "--plan", file), 2)
    a["device"], b["device"] = "cpu:0", "cpu:0:64MB"
    file.write_text(json.dumps(made))
    assert "cpu:0 is there twice" in complaint(ggrun("plan", "--plan", file), 2)


def test_a_plan_as_json_can_be_run(tiny: Path, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    done = ggrun("plan", tiny, "--json", "--devices", "cpu:1GB@10GB/s", "-fitt", "0")
    file.write_text(done.stdout)
    assert [stage["halves"] for stage in json.loads(done.stdout)["stages"]] == [[0, 6]]
    demo = ggrun("plan", "--json").stdout
    file.write_text(demo)
    assert ggrun(*QUIET, "--plan", file).stdout == ggrun(*QUIET).stdout
    line = complaint(ggrun(*QUIET, "-m", tiny, "--plan", file), 2)
    assert "the plan's" in line
    assert "the model has" in line or "of 6" in line


@pytest.mark.parametrize(
    ("args", "status", "words"),
    [
        (["nowhere.gguf"], 1, ["nowhere.gguf", "No such file"]),
        (["nothing:Q4_K_M"], 2, ["no such file", "unknown shape 'nothing'", "llama-3-70b"]),
        (["llama-3-8b:Q9"], 2, ["unknown mix 'Q9'"]),
        (["llama-3-8b", "--devices", "rtx9999"], 2, ["unknown device 'rtx9999'"]),
        (["llama-3-8b", *TWO, "-ts", "1,2,3"], 2, ["-ts gives 3 numbers for 2 cards"]),
        (["llama-3-8b", *TWO, "-ts", "a,b"], 2, ["-ts 'a,b'"]),
        (["llama-3-8b", *TWO, "-fitt", "1,2,3,4"], 2, ["-fitt gives 4 numbers for 3 devices"]),
        (["llama-3-8b", *TWO, "-fitt", "1,x"], 2, ["-fitt '1,x'", "MiB"]),
        (["llama-3-8b", *TWO, "-fitt", "1,-1"], 2, ["-fitt", "0 or more"]),
        (["llama-3-8b", *TWO, "-dev", "cuda:5"], 2, ["unknown device 'cuda:5'"]),
        (["llama-3-8b", *TWO, "-ot", "zzz=CPU"], 2, ["-ot 'zzz'", "no tensor"]),
        (["llama-3-8b", *TWO, "-ot", "zzz"], 2, ["-ot 'zzz'", "REGEX=DEVICE"]),
        (["llama-3-8b", *TWO, "-ngl", "most"], 2, ["-ngl 'most'"]),
        (["llama-3-8b", *TWO, "-sm", "diagonal"], 2, ["-sm", "diagonal"]),
        (["llama-3-8b", *TWO, "-ot", "attn=cpu,ffn=cuda:7"], 2, ["unknown device 'cuda:7'"]),
        (["llama-3-8b", *TWO, "-mg", "2"], 2, ["-mg 2", "2 cards"]),
        (["llama-3-8b", "--devices", ""], 2, ["unknown device ''"]),
        (["--devices", "cpu:0:1GB,cpu:00:2GB"], 2, ["cpu:0 is there twice"]),
        (["llama-3-8b", "--plan", "nowhere.json"], 1, ["nowhere.json", "No such file"]),
        (["llama-3-8b", *TWO, "--plan", __file__], 2, ["test_plan.py", "not a plan"]),
        (["llama-3-8b", "-hf", "a/b"], 2, ["-hf", "not built yet"]),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else str(v),
)
def test_bad_usage_gets_one_line(
    args: list[str], status: int, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    line = complaint(here(capsys, "plan", *args), status)
    for word in words:
        assert word in line


def test_flags_of_run(tiny: Path) -> None:
    want = ggrun(*QUIET).stdout
    assert ggrun(*QUIET, "-ngl", "99", "-sm", "row", "-fitc", "128").stdout == want  # there is one device
    assert "-ts gives 2 numbers for 0 cards" in complaint(ggrun(*QUIET, "-ts", "1,1"), 2)
    line = complaint(ggrun(*QUIET, "-fitt", "100000000"), 1)
    assert "does not fit: cpu needs" in line
    assert "-fitt 0" in line
    assert ggrun(*QUIET, "-fitt", "100000000", "-fit", "off").stdout == want


def test_flags_of_sums() -> None:
    """Rounded on the wire, the first tokens are the same; NCCL is for cards."""
    want = ggrun(*QUIET, *TWINS, "--all-reduce", "copy").stdout
    assert want
    assert ggrun(*QUIET, *TWINS, "--wire", "bf16").stdout == want
    line = complaint(ggrun(*QUIET, *TWINS, "--all-reduce", "nccl"), 1)
    assert line.endswith("NCCL sums over CUDA devices alone, cpu:0 is none")
    assert "--wire" in complaint(ggrun(*QUIET, "--wire", "f16"), 2)
    rounded = ggrun("bench", *TWINS, "--wire", "bf16", "-p", "4", "-n", "0", "-r", "1", "-o", "csv")
    assert rounded.returncode == 0


def test_devices_are_listed() -> None:
    done = ggrun("run", "--list-devices", "-m", "nowhere.gguf")
    assert done.returncode == 0
    assert done.stdout.splitlines()[1].startswith("  cpu: CPU (")
    done = ggrun("run", "--list-devices", "--devices", "cpu:3:1GB")
    assert done.stdout.splitlines()[1:] == ["  cpu:3:1GB: CPU (1024 MiB, 1024 MiB free)"]


def test_help_is_instant() -> None:
    """Nothing of the engine, of numpy or of Numba is imported for it."""
    code = "import sys, ggrun.cli.commands as c; c.status_of(['plan', '-h']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = set(done.stdout.splitlines()[-1].split())
    assert "ggrun.cli.plan" in imported
    assert not imported & {"numpy", "numba", "jinja2", "tokenizers", "llguidance", "gguf", "ggrun.engine"}
