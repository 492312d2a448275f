"""ggrun worker and ggrun join, as users type them."""

import json
import logging
import os
import pty
import re
import resource
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from ggrun.cli.worker import log_format
from ggrun.devices.host_memory import host_memory
from ggrun.errors import GgrunError
from ggrun.rpc import keys
from tests.cli.test_run import read_until
from tests.waiting import PATIENCE

KEY = keys.Key(bytes(range(32)), bytes(range(32, 64)))


def ggrun(*arguments: str, text: str | None = None) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "ggrun", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE, input=text)


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


def test_the_list_shows_what_all_clients_together_get() -> None:
    devices = ("-t", "1", "-d", "cpu:0:1GB,cpu:1:0.5GB")
    done = ggrun("worker", "--list", *devices, "--max-memory", "1.25g")
    assert done.stdout.splitlines()[1:] == [
        "  cpu:0:1GB: CPU (1024 MiB, 1024 MiB to lend)",
        "  cpu:1:0.5GB: CPU (512 MiB, 256 MiB to lend)",
    ]


def test_nothing_to_lend(config: Path) -> None:
    done = ggrun("worker", "-p", "0", "-t", "1", "-d", "cpu:0:1GB,cpu:1:8KB", "--max-memory", "1000KiB")
    assert done.returncode == 1
    assert done.stderr == (
        "ggrun: cpu:0:1GB, cpu:1:8KB: less than 1 MiB to lend: see -d, --max-memory and -fitt\n"
    )
    assert list((config / "worker").iterdir()) == []  # no token that nobody would see


def test_no_device_has_more_than_the_machine() -> None:
    done = ggrun("worker", "--list", "-t", "1", "-d", "cpu:0:999TB")
    assert done.returncode == 0, done.stderr
    found = re.fullmatch(r"devices:\n  cpu:0:999TB: CPU \((\d+) MiB, (\d+) MiB to lend\)\n", done.stdout)
    assert found
    assert int(found[2]) <= int(found[1]) == host_memory().total >> 20


def test_joining(config: Path) -> None:
    done = ggrun("join", "spare:50052", str(KEY))
    assert (done.returncode, done.stdout) == (0, "")
    assert str(KEY) not in done.stderr
    assert json.loads((config / "workers.json").read_text()) == {"spare:50052": str(KEY)}
    piped = ggrun("join", "other:1", text=f"{KEY}\n")
    assert piped.returncode == 0
    assert re.fullmatch(r"ggrun join: other:1 is kept in .*\n", piped.stderr)
    assert keys.known_workers() == {"spare:50052": KEY, "other:1": KEY}


@pytest.mark.parametrize("how", ["a file", "an argument"])
def test_joining_with_the_line_that_was_printed(how: str) -> None:
    """As the worker prints it, and as one saves it: the address in it must be the one that is said."""
    line = f"  ggrun join spare:50052 {KEY}\n"
    more, text = ([line], "") if how == "an argument" else ([], line)
    done = ggrun("join", "spare:50052", *more, text=text)
    assert done.returncode == 0, done.stderr
    other = ggrun("join", "192.0.2.7:50052", *more, text=text)
    assert other.returncode == 2
    assert other.stderr == (
        "ggrun: that is the line of 'spare:50052', and not of 192.0.2.7:50052: give that address, or only "
        "the key, which is the line's last word\n"
    )
    assert keys.known_workers() == {"spare:50052": KEY}


def test_ctrl_d_instead_of_a_key(config: Path) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-m", "ggrun", "join", "spare:50052"])
    try:
        read_until(terminal, "key: ")
        os.write(terminal, b"\x04")
        said = read_until(terminal, "nothing more comes")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 2
    finally:
        os.close(terminal)
    assert said.strip() == "ggrun: no key: give it after the address, or on standard input"
    assert not config.exists()


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["join", "spare", str(KEY)], "'spare' is no address of a worker: write it as host:port"),
        (["join", "spare:0", str(KEY)], "is no address"),
        (["join", f"spare:{'9' * 5000}", str(KEY)], "is no address"),
        (["join", "::1:50052", str(KEY)], "write it as host:port or [IPv6]:port"),
        (["join", "spare:50052", "abc"], "that is no key of a worker"),
        (["join", "spare:50052"], "no key: give it after the address, or on standard input"),
        (["worker", "--max-memory", "8"], "--max-memory: '8' is no size: write it as 16GB"),
        (["worker", "--cache-size", "64"], "--cache-size: '64' is no size: write it as 16GB"),
        (["worker", "-p", "0", "-d", "tpu:0", "-t", "1"], "unknown device 'tpu:0': a worker lends what its"),
        (["worker", "-p", "0", "-d", "cpu,2x rtx3090"], "unknown device '2x rtx3090': a worker lends what"),
        (["worker", "--list", "-d", "card:24GB@900GB/s"], "unknown device 'card:24GB@900GB/s': a worker"),
        (["worker", "--list", "-d", "cpu:0:0GB"], "ggrun: device 'cpu:0:0GB': '0' is no number that"),
        (["worker", "-p", "70000"], "70000 is not in the range"),
        (["run", "--rpc", "spare:50052", "-p", "x"], "spare:50052: was not joined: paste the join line"),
        (["run", "--rpc", "spare:1", "--insecure", "-p", "x"], "twice for any"),
        (["run", "--rpc", "spare:1", "--rpc-cert", "a.pem", "-p", "x"], "--rpc-cert: give two files"),
    ],
)
def test_what_cannot_be(arguments: list[str], why: str) -> None:
    done = ggrun(*arguments, text="")
    assert done.returncode == 2
    assert done.stdout == ""
    assert why in done.stderr
    assert "Traceback" not in done.stderr


def test_a_plan_with_a_worker_that_was_not_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said at once: nothing was compiled or measured here before."""
    monkeypatch.setenv("GGRUN_CACHE", str(tmp_path / "cache"))
    done = ggrun("plan", "--rpc", "spare:50052")
    assert done.returncode == 2
    assert re.fullmatch(r"ggrun: spare:50052: was not joined: .*\n", done.stderr)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"spare:50052": 1}', "\xff"])
def test_a_damaged_list_of_workers(text: str, config: Path) -> None:
    config.mkdir()
    file = config / "workers.json"
    file.write_bytes(text.encode("latin-1"))
    why = re.escape(f"{file}: damaged: remove it, and join the workers again")
    for use in (lambda: keys.known_worker("spare:50052"), lambda: keys.join("spare:50052", KEY)):
        with pytest.raises(GgrunError, match=f"^{why}$"):
            use()


def test_what_cannot_be_a_list_of_workers(config: Path) -> None:
    (file := config / "workers.json").mkdir(parents=True)
    done = ggrun("run", "--rpc", "spare:50052", "-p", "x")
    assert (done.returncode, done.stderr) == (1, f"ggrun: {file}: cannot be read: Is a directory\n")


def test_a_disk_that_is_full(config: Path) -> None:
    """Nothing of what could not be written stays."""
    command = [sys.executable, "-m", "ggrun", "join", "spare:50052", str(KEY)]
    full = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (16, 16))
    done = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=full)
    file = config / "workers.json"
    assert done.returncode == 1
    assert done.stderr == (f"ggrun: {file}: File too large: GGRUN_CONFIG names another folder for keys\n")
    assert list(config.iterdir()) == []


def test_no_folder_for_secrets(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said before anything is compiled or measured: a worker's start takes seconds."""
    config.touch()
    monkeypatch.setenv("GGRUN_CACHE", str(tmp_path / "cache"))
    done = ggrun("worker", "-p", "0", "-t", "1", "-d", "cpu:0:1GB")
    assert done.returncode == 1
    assert done.stderr == (
        f"ggrun: {config}/worker: Not a directory: GGRUN_CONFIG names another folder for keys\n"
    )


def test_a_damaged_key_is_one_workers_only(config: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys.join("spare:50052", KEY)
    file = config / "workers.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "other:1": "abc"}))
    done = ggrun("run", "--rpc", "other:1", "-p", "x")
    assert done.returncode == 1
    why = f"{file}: the key of 'other:1' is damaged: join that worker again"
    assert why in done.stderr
    assert keys.known_worker("spare:50052") == KEY
    assert keys.known_workers() == {"spare:50052": KEY}
    assert [record.message for record in caplog.records] == [why]


def test_a_port_in_use(config: Path) -> None:
    """The start fails in one line, and makes no token that nobody would see."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = ggrun("worker", "--new-token", "-t", "1", "-d", "cpu:0:1GB", "-p", str(port))
    assert done.returncode == 1
    assert done.stderr == f"ggrun: 127.0.0.1:{port}: cannot listen there: Address already in use\n"
    assert not config.exists()


def test_an_address_of_another_machine() -> None:
    done = ggrun("worker", "-t", "1", "-d", "cpu:0:1GB", "-H", "192.0.2.1")
    assert done.returncode == 1
    why = "192.0.2.1:50052: cannot listen there: Cannot assign requested address"
    assert done.stderr == f"ggrun: {why}\n"


@pytest.mark.parametrize("text", ["", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_no_authorities_of_clients(text: str, tmp_path: Path) -> None:
    """Such a worker would refuse everybody."""
    file = tmp_path / "clients.pem"
    file.write_text(text)
    done = ggrun("worker", "-p", "0", "-t", "1", "-d", "cpu:0:1GB", "--client-ca", str(file))
    assert done.returncode == 1
    assert done.stderr == f"ggrun: {file}: has no certificates, or damaged ones (PEM is needed)\n"


def test_no_text_makes_two_lines_of_the_log() -> None:
    record = logging.makeLogRecord({"msg": "%s: refused: %s", "args": ("w", "a\nb\x1b[2Jc\u2028d")})
    assert re.fullmatch(r"[-0-9]+ [:0-9]+ w: refused: a b\[2Jc d", log_format().format(record))
    record = logging.makeLogRecord({"msg": "x" * 10_000})
    assert len(log_format().format(record)) == 1000
