"""Workers as users have them: processes of their own, with real sockets."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.rpc.processes import WorkerProcess

Start = Callable[..., WorkerProcess]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts workers that the test's own process has joined; they end with the test."""
    monkeypatch.setenv("GGRUN_CONFIG", str(tmp_path / "client"))
    started: list[WorkerProcess] = []

    def make(*flags: str, name: str = "worker", join: bool = True) -> WorkerProcess:
        process = WorkerProcess(tmp_path / name, *flags)
        started.append(process)
        if join and process.key:
            process.join()
        return process

    yield make
    for process in started:
        process.end()
