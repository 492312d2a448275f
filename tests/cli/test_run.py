"""ggrun run as users meet it: a process, its output, its exit status."""

import os
import pty
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ggrun.bundled import demo_model
from ggrun.cli.commands import status_of
from tests.tiny import Tiny
from tests.waiting import PATIENCE

GGRUN = [sys.executable, "-c", "import ggrun.cli; ggrun.cli.main()"]


def ggrun(*args: str | Path, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*GGRUN, *map(str, args)], input=stdin, capture_output=True, text=True, check=False, timeout=PATIENCE,
        env={**os.environ, **env},
    )  # fmt: skip


def here(capsys: pytest.CaptureFixture[str], *args: str | Path) -> subprocess.CompletedProcess[str]:
    """The same in this process, for what is refused: a new one imports for a second."""
    status = status_of([str(arg) for arg in args])
    return subprocess.CompletedProcess(args, status, *capsys.readouterr())


def bash(command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, check=False, timeout=PATIENCE
    )


def complaint(done: subprocess.CompletedProcess[str], status: int) -> str:
    """The one line on stderr of a run that failed as it should."""
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if not line.startswith("compiling kernels")]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("ggrun: ")
    assert "Traceback" not in lines[0]
    assert "internal error" not in lines[0]
    return lines[0]


def test_a_tale_with_times() -> None:
    done = ggrun("run", "-p", "Once upon a time", "-n", "20", "-s", "1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Once upon a time")
    assert len(done.stdout) > 40
    for word in ("load", "prompt", "generation", "first token", "tokens/s"):
        assert word in done.stderr


def test_a_seed_reproduces() -> None:
    runs = {ggrun("run", "-p", "The king", "-n", "30", "-s", str(seed)).stdout for seed in (5, 5, 6)}
    assert len(runs) == 2


def test_prompts_come_from_files_pipes_and_the_environment(tmp_path: Path) -> None:
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("The fox said\n")
    common = ("-n", "5", "--temp", "0", "--no-show-timings")
    want = ggrun("run", "-p", "The fox said\\n", *common).stdout
    assert want.startswith("The fox said\n")
    assert ggrun("run", *common, stdin="The fox said\n").stdout == want
    # The last newline of a file is its editor's.
    assert ggrun("run", "-f", prompt, *common).stdout == ggrun("run", "-p", "The fox said", *common).stdout
    assert (
        ggrun("run", *common[:2], "--no-show-timings", GGRUN_PROMPT="The fox said\\n", GGRUN_TEMP="0").stdout
        == want
    )
    assert (
        "The fox said\n" + ggrun("run", "-p", "The fox said\\n", *common, "--no-display-prompt").stdout
        == want
    )


def test_an_empty_prompt_begins_at_the_beginning() -> None:
    done = ggrun("run", "-p", "", "-n", "10", "-s", "1")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) > 10


def test_stop_strings() -> None:
    done = ggrun("run", "-p", "Once", "-n", "60", "--temp", "0", "-r", "e", "--no-display-prompt")
    assert "e" not in done.stdout


@pytest.mark.parametrize(
    ("args", "status", "words"),
    [
        (["run", "-m", "nowhere.gguf", "-p", "x"], 1, ["nowhere.gguf", "No such file"]),
        (["run", "-p", "x", "--temp", "hot"], 2, ["--temp", "hot"]),
        (["run", "-p", "x", "--top-p", "3"], 2, ["top_p"]),
        (["run", "-p", "x", "--frobnicate"], 2, ["--frobnicate"]),
        (["run", "-p", "x", "-ctk", "q3"], 2, ["q3"]),
        (["run", "-p", "x", "-l", "nonsense"], 2, ["nonsense"]),
        (["run", "-p", "x", "-l", "99999+1"], 2, ["no token 99999", "0 to 4095"]),
        (["run", "-p", "x", "-f", "y"], 2, ["-p", "-f"]),
        (["run", "-f", "no-such-prompt"], 1, ["no-such-prompt", "No such file"]),
        (["run", "-p", "word " * 600], 2, ["tokens", "context holds 512", "-c"]),
        (["run", "-p", "x", "-c", "2000000000"], 1, ["KV cache", "GiB", "-c"]),
        (["run", "-p", "x", "-c", "99999999999"], 2, ["n_ctx"]),
        (["frobnicate"], 2, ["frobnicate"]),
    ],
    ids=lambda v: " ".join(v)[:40] if isinstance(v, list) else str(v),
)
def test_bad_usage_gets_one_line(
    args: list[str], status: int, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    line = complaint(here(capsys, *args), status)
    for word in words:
        assert word in line


def test_a_context_that_the_model_was_not_made_for(capsys: pytest.CaptureFixture[str]) -> None:
    notes: list[str] = []
    for n_ctx in ("512", "600"):
        done = here(capsys, "run", "-p", "Once", "-n", "1", "--no-show-timings", "-c", n_ctx)
        assert done.returncode == 0
        notes += [line for line in done.stderr.splitlines() if "context" in line]
    assert notes == ["the model was made for a context of 512, and has 600 here"]


def test_bad_files_get_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demo = demo_model().read_bytes()
    shard = tmp_path / "a-00001-of-00002.gguf"
    files = {
        "empty.gguf": b"",
        "text.gguf": b"once upon a time" * 10,
        "head.gguf": demo[:10],
        "metadata.gguf": demo[:5000],
        "weights.gguf": demo[: len(demo) - 100],
        shard.name: demo,
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    for name in list(files)[:-1]:
        assert name in complaint(here(capsys, "run", "-m", tmp_path / name, "-p", "x"), 1)
    complaint(here(capsys, "run", "-m", tmp_path, "-p", "x"), 1)


def test_models_that_cannot_run_get_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unknown = Tiny(arch="mamba9").write(tmp_path / "unknown.gguf")
    line = complaint(here(capsys, "run", "-m", unknown, "-p", "x"), 1)
    assert line.startswith(f"ggrun: {unknown}: unknown architecture 'mamba9'")
    wrong = Tiny(extra={"feed_forward_length": 100}).write(tmp_path / "wrong.gguf")
    assert "ffn_gate" in complaint(here(capsys, "run", "-m", wrong, "-p", "x"), 1)
    wordless = Tiny().write(tmp_path / "wordless.gguf")
    assert "tokenizer" in complaint(here(capsys, "run", "-m", wordless, "-p", "x"), 1)


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("run -sm row -p Once -n 1", True),
        ("run -sm tensor -p Once -n 1", True),
        ("run -sm row -ts 1,1 -p Once -n 1", False),
        ("run -sm auto -p Once -n 1", False),
        ("run -p Once -n 1", False),
    ],
)
def test_rows_that_the_planner_does_not_share(
    command: str, told: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who asks for mode row is told when one device has all rows: for a small model that is faster."""
    done = here(capsys, *command.split(), "--devices", "emulated:0:512MB,emulated:1:512MB")
    assert done.returncode == 0
    mode = command.split()[2]
    line = f"ggrun: -sm {mode}: emulated:0:512MB is left out: with it, tokens would take longer"
    assert [text for text in done.stderr.splitlines() if "left out" in text] == [line] * told


def test_a_reader_that_leaves_is_no_error() -> None:
    command = " ".join(f"'{part}'" for part in [*GGRUN, "run", "-p", "Once", "-n", "200", "--ignore-eos"])
    done = bash(f"{command} | head -c 5; echo status ${{PIPESTATUS[0]}}")
    assert done.stdout.endswith("status 0\n")
    assert "Traceback" not in done.stderr
    assert "rror" not in done.stderr


def test_a_full_disk_gets_one_line() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    done = bash(f"{GGRUN[0]} -c '{GGRUN[2]}' run -p Once -n 5 > /dev/full")
    assert "No space left" in complaint(done, 1)


def test_a_cache_folder_that_cannot_be_written(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    done = ggrun("run", "-p", "Once", "-n", "3", GGRUN_CACHE=str(blocked / "cache"))
    assert done.returncode == 0, done.stderr
    notes = [line for line in done.stderr.splitlines() if "cache folder" in line]
    assert len(notes) == 1
    assert "GGRUN_CACHE" in notes[0]


def test_a_system_that_starts_no_more_threads(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    assert "no more threads: ulimit -u" in complaint(here(capsys, "run", "-p", "Once"), 1)


def read_until(terminal: int, text: str) -> str:
    seen, end = "", time.monotonic() + PATIENCE
    while text not in seen:
        assert time.monotonic() < end, seen
        try:
            seen += os.read(terminal, 4096).decode(errors="replace")
        except OSError:
            break
    return seen


def listen_to_ctrl_c() -> None:
    """In a child: a shell starts background jobs, and so perhaps these tests, with SIGINT ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_ends_the_text_and_not_the_session() -> None:
    """However often: each is answered before the next one comes, so none of them is a second one."""
    script = "import sys; from ggrun.cli import interrupt, main; interrupt.GRACE = 0.3; sys.exit(main())"
    pid, terminal = pty.fork()
    if pid == 0:
        listen_to_ctrl_c()
        flags = ["--ignore-eos", "--no-show-timings", "-c", "400000"]
        os.execv(sys.executable, [sys.executable, "-c", script, "run", *flags])
    try:
        read_until(terminal, "> ")
        for _ in range(2):
            os.write(terminal, b"Once upon a time\n")
            read_until(terminal, "Once upon a time\r\nOnce upon a time")
            time.sleep(0.3)
            os.write(terminal, b"\x03")
            read_until(terminal, "\r\n> ")
        time.sleep(0.5)
        os.write(terminal, b"\x04")
        read_until(terminal, "nothing more comes")
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
    finally:
        os.close(terminal)


def test_ctrl_c_in_one_shot_keeps_the_text_and_the_times() -> None:
    process = subprocess.Popen(
        [*GGRUN, "run", "-p", "Once", "--ignore-eos", "-c", "400000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=listen_to_ctrl_c,
    )
    assert process.stdout is not None
    process.stdout.read(60)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert b"generation" in errors
    assert b"Traceback" not in errors
