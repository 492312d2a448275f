"""Workers as users have them, processes of their own with real sockets; and a shop without a door."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ggrun.plan.hardware import DeviceInfo
from ggrun.rpc import channel, workers
from ggrun.rpc.handoff import Doors
from ggrun.rpc.ledger import Ledger
from ggrun.rpc.shop import Shop
from ggrun.rpc.store import Library, Store
from tests.rpc.processes import WorkerProcess
from tests.rpc.script import ROOM
from tests.tiny import Tiny

Start = Callable[..., WorkerProcess]


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where users are not kept waiting: a worker may have to wait for a processor, in tests."""
    monkeypatch.setattr(workers, "AGAIN", channel.TIMEOUT)
    monkeypatch.setattr(channel, "_LOOK", channel.TIMEOUT)


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts workers that the test's own process has joined; they end with the test."""
    monkeypatch.setenv("GGRUN_CONFIG", str(tmp_path / "client"))
    started: list[WorkerProcess] = []

    def make(*flags: str, name: str = "worker", join: bool = True, module: str = "ggrun") -> WorkerProcess:
        process = WorkerProcess(tmp_path / name, *flags, module=module)
        started.append(process)
        if join and process.key:
            process.join()
        return process

    yield make
    for process in started:
        process.end()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Tiny(layers=2, experts=4, experts_used=2).write(tmp_path_factory.mktemp("fuzz") / "model.gguf")


@pytest.fixture
def shop(path: Path, tmp_path: Path) -> Shop:
    device = DeviceInfo("cpu:0:64MB", ROOM, ROOM, 1e10, 1e11, 1e10, "CPU", shared=False)
    ledger, store = Ledger({device.name: ROOM}), Store(tmp_path / "store", 1 << 30)
    return Shop((device,), 1, ledger, store, Library(path.parent), Doors(), insecure=1)
