"""Standard streams that are closed, full, or in another encoding."""

import os
import pty
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.cli.test_run import GGRUN, bash, complaint, ggrun, here, read_until

SHORT = "run -p Once -n 3 --temp 0"


def shell(arguments: str) -> subprocess.CompletedProcess[str]:
    """A run with redirections."""
    return bash(f"{shlex.join(GGRUN)} {arguments}")


def test_a_closed_stdin_is_an_empty_one() -> None:
    done = shell("run -n 5 --temp 0 <&-")
    assert done.returncode == 0, done.stderr
    assert done.stdout == shell("run -n 5 --temp 0 </dev/null").stdout


@pytest.mark.parametrize(
    "arguments", [SHORT, "--help", "run --help", "plan", "plan --json", "run --list-devices", "doctor --json"]
)
def test_a_closed_stdout_gets_one_line(arguments: str) -> None:
    assert complaint(shell(f"{arguments} >&-"), 1) == "ggrun: output: Bad file descriptor"


def test_errors_of_libraries_are_not_those_of_the_output(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unloaded(*_: object, **__: object) -> None:
        raise OSError("Could not load shared object file")  # as llvmlite does where memory is limited

    monkeypatch.setattr("ggrun.llm.LLM.__init__", unloaded)
    assert complaint(here(capsys, "run", "-p", "x"), 1) == "ggrun: Could not load shared object file"


def test_a_closed_stderr_loses_the_times_and_nothing_else() -> None:
    done = shell(f"{SHORT} 2>&-")
    assert done.returncode == 0
    assert done.stdout == shell(f"{SHORT} --no-show-timings").stdout


def test_nothing_open_at_all() -> None:
    assert shell("run --frobnicate <&- >&- 2>&-").returncode == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_full_disks() -> None:
    assert "No space left" in complaint(shell(f"{SHORT} >/dev/full"), 1)
    for arguments in ("--help", "plan", "plan --json"):
        assert "No space left" in complaint(shell(f"{arguments} >/dev/full"), 1)
    assert shell("run --frobnicate 2>/dev/full").returncode == 2
    done = shell(f"{SHORT} 2>/dev/full")
    assert (done.returncode, done.stdout) == (0, shell(f"{SHORT} 2>/dev/null").stdout)


@pytest.mark.parametrize("setting", ["", "LC_ALL=C.UTF-8", "PYTHONUTF8=1", "LC_ALL=C PYTHONUTF8=0"])
def test_bytes_that_are_no_text_get_one_line(setting: str) -> None:
    piped = bash(f"printf '\\xff\\xfe' | env {setting} {shlex.join(GGRUN)} run -n 3")
    assert "standard input: not a text in UTF-8" in complaint(piped, 1)
    typed = bash(f"env {setting} {shlex.join(GGRUN)} run -n 3 -p $'\\xff'")
    assert "not a text in UTF-8" in complaint(typed, 2)


def test_characters_that_a_terminal_lacks() -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        flags = ["-p", "é", "-n", "0", "--no-show-timings"]
        os.execve(GGRUN[0], [*GGRUN, "run", *flags], {**os.environ, "PYTHONIOENCODING": "ascii"})
    try:
        assert read_until(terminal, "nothing more comes").endswith("?\r\n")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    finally:
        os.close(terminal)


@pytest.mark.parametrize("setting", ["LC_ALL=C PYTHONUTF8=0", "PYTHONIOENCODING=ascii"])
def test_files_and_pipes_are_utf8_whatever_the_locale(setting: str, tmp_path: Path) -> None:
    run = f"{setting} {shlex.join(GGRUN)} run -n 0 --no-show-timings"
    assert bash(f"printf 'caf\\xc3\\xa9' | {run} > {tmp_path}/file").returncode == 0
    assert (tmp_path / "file").read_bytes() == "café\n".encode()
    assert bash(f"{run} -p 'café'").stdout == "café\n"


def test_bars_of_an_encoding_without_blocks() -> None:
    lines = ggrun("plan", "llama-3-8b", "--devices", "rtx3090", PYTHONIOENCODING="ascii").stdout.splitlines()
    assert lines[1] == "# weights  = KV  + working  . free"
    (bar,) = (line.partition("[")[2].partition("]")[0] for line in lines if line.startswith("  ["))
    assert len(bar) == 40
    assert list(dict.fromkeys(bar)) == list("#=.")  # what works is less than a letter
