"""ggrun worker and ggrun join, as users type them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ggrun.rpc import keys

KEY = keys.Key(bytes(range(32)), bytes(range(32, 64)))


def ggrun(*arguments: str, text: str | None = None) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "ggrun", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, input=text)


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GGRUN_CONFIG", str(tmp_path / "config"))
    return tmp_path / "config"


def test_the_list_of_devices() -> None:
    done = ggrun("worker", "--list", "-t", "1", "-d", "cpu:0:1GB,cpu:1:0.5GB", "-fitt", "0")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "devices:",
        "  cpu:0:1GB: CPU (1024 MiB, 1024 MiB to lend)",
        "  cpu:1:0.5GB: CPU (512 MiB, 512 MiB to lend)",
    ]


def test_joining(config: Path) -> None:
    done = ggrun("join", "spare:50052", str(KEY))
    assert (done.returncode, done.stdout) == (0, "")
    assert str(KEY) not in done.stderr
    assert json.loads((config / "workers.json").read_text()) == {"spare:50052": str(KEY)}
    assert ggrun("join", "other:1", text=f"{KEY}\n").returncode == 0
    assert keys.known_workers() == {"spare:50052": KEY, "other:1": KEY}


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["join", "spare", str(KEY)], "'spare' is no address of a worker: write it as host:port"),
        (["join", "spare:0", str(KEY)], "is no address"),
        (["join", "::1:50052", str(KEY)], "write it as host:port or [IPv6]:port"),
        (["join", "spare:50052", "abc"], "that is no key of a worker"),
        (["worker", "--max-memory", "much"], "--max-memory 'much': write it as 16GB"),
        (["worker", "-d", "tpu:0", "-t", "1"], "unknown device 'tpu:0'"),
        (["worker", "-p", "70000"], "70000 is not in the range"),
        (["run", "--rpc", "spare:50052", "-p", "x"], "spare:50052: was not joined: paste the join line"),
        (["run", "--rpc", "spare:1", "--insecure", "-p", "x"], "twice for any"),
        (["run", "--rpc", "spare:1", "--rpc-cert", "a.pem", "-p", "x"], "--rpc-cert: give two files"),
    ],
)
def test_what_cannot_be(arguments: list[str], why: str) -> None:
    done = ggrun(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert why in done.stderr
    assert "Traceback" not in done.stderr


def test_a_damaged_list_of_workers(config: Path) -> None:
    config.mkdir()
    (config / "workers.json").write_text("{")
    done = ggrun("run", "--rpc", "spare:50052", "-p", "x")
    assert done.returncode == 1
    assert f"{config / 'workers.json'}: cannot be read" in done.stderr


def test_a_port_in_use() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = ggrun("worker", "--insecure", "-t", "1", "-d", "cpu:0:1GB", "-p", str(port))
    assert done.returncode == 1
    assert f"127.0.0.1:{port}: cannot listen there" in done.stderr
