"""The line that a worker prints to be pasted: it is never lost, and says what it is good for."""

import socket
from pathlib import Path

import pytest

from tests.cli.test_worker import ggrun
from tests.rpc.conftest import Start


def test_a_line_that_nobody_saw_is_shown_by_the_next_start(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache that cannot be made ends the first one, when certificate and token are there."""
    (tmp_path / "file").touch()
    folder = str(tmp_path / "file" / "cache")
    monkeypatch.setenv("GGRUN_CONFIG", str(tmp_path / "worker"))
    done = ggrun("worker", "-p", "0", "-t", "1", "-d", "cpu:0:1GB", "--cache-dir", folder)
    assert done.returncode == 1
    assert done.stderr == (
        f"ggrun: {folder}/tensors: Not a directory: give another folder with --cache-dir\n"
    )
    token = (tmp_path / "worker" / "worker" / "token").read_text().strip()
    worker = start()
    assert worker.key
    assert worker.key.startswith(f"{token}.")
    assert worker.text.splitlines()[0] == "ggrun worker: paste this here (it is shown only now):"
    assert "only this machine can use it at 127.0.0.1; -H 0.0.0.0 lets others" in worker.text


def test_what_is_shown_to_paste_on_other_machines(start: Start) -> None:
    worker = start("-H", "0.0.0.0", "--no-announce", join=False)
    name = socket.gethostname()
    assert worker.lines[:3] == [
        "ggrun worker: paste this on each machine that may use this worker (it is shown only now):",
        f"  ggrun join {name}:{worker.port} {worker.key}",
        f"ggrun worker: where {name} is not known, put in an address of this machine instead",
    ]
