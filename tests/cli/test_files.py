"""Files that users name: those that cannot be read, and names that are none."""

import ctypes
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.test_run import complaint, here

IN_TURN = """
import json, sys
from ggrun.cli.commands import status_of
print(*[status_of(arguments) for arguments in json.load(sys.stdin)])
"""
_LIBC = ctypes.CDLL(None)
_DROP, _OVERRIDE, _READ_SEARCH = 24, 1, 2  # PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
NAMED = ["run -p x -m", "perplexity -p x -m", "bench -m", "plan", "run -f", "perplexity -f",
         "run -p x --plan", "run -p x --grammar-file", "run -p x -jf"]  # fmt: skip


def as_anybody() -> None:
    """In a child: root may read everything no more; others never could."""
    for capability in (_OVERRIDE, _READ_SEARCH):
        _LIBC.prctl(_DROP, capability, 0, 0, 0)


def test_files_that_may_not_be_read_are_no_wrong_usage(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"x" * 1000)
    (tmp_path / "secret").chmod(0)
    done = subprocess.run(
        [sys.executable, "-c", IN_TURN], cwd=tmp_path, capture_output=True, text=True, check=False,
        input=json.dumps([[*start.split(), "secret"] for start in NAMED]), preexec_fn=as_anybody,
    )  # fmt: skip
    assert done.stdout.split() == ["1"] * len(NAMED), done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == len(NAMED)
    for line in lines:
        assert line.startswith("ggrun: secret: ")
        assert line.endswith("Permission denied")


@pytest.mark.parametrize("start", [*NAMED, "worker --models", "worker --client-ca"])
def test_files_that_are_not_there(start: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = complaint(here(capsys, *start.split(), "nope"), 1)
    assert "nope: " in line
    assert line.endswith("No such file or directory")


def test_a_folder_of_models_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    line = complaint(here(capsys, "worker", "--models", tmp_path / "file"), 1)
    assert line == f"ggrun: --models {tmp_path / 'file'}: Not a directory"


@pytest.mark.parametrize("start", [*NAMED, "worker --models"])
@pytest.mark.parametrize(
    ("name", "words"),
    [("", "a file without a name"), ("https://x/y.gguf", "'https://x/y.gguf': ggrun downloads nothing")],
)
def test_names_of_no_file(start: str, name: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert words in complaint(here(capsys, *start.split(), name), 2)
