"""A worker's end, as its user sees it: in order, and without words of Python's or gRPC's."""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.test_run import listen_to_ctrl_c
from tests.rpc.conftest import Start
from tests.rpc.processes import WorkerProcess
from tests.waiting import PATIENCE

ENDLESS = ["-c", "100000", "--ignore-eos", "-n", "-1", "--no-show-timings", "-t", "1", "-p", "Once"]


@contextmanager
def generating(worker: WorkerProcess) -> Iterator["subprocess.Popen[bytes]"]:
    """A client in a process of its own, which has its first word from the worker."""
    command = [sys.executable, "-m", "ggrun", "run", "--rpc", worker.address, "--insecure", *ENDLESS]
    command += ["-dev", worker.device(), "-ngl", "all"]
    client = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=listen_to_ctrl_c
    )
    try:
        assert client.stdout
        client.stdout.read(len("Once upon a"))
        yield client
    finally:
        client.kill()
        client.communicate()


def test_it_logs_to_the_end(start: Start) -> None:
    """Its session ends later than gRPC has: the client has left while the worker stood still."""
    worker = start("--insecure")
    with generating(worker) as client:
        os.kill(worker.process.pid, signal.SIGSTOP)
        client.send_signal(signal.SIGINT)
        client.communicate(timeout=PATIENCE)
    os.kill(worker.process.pid, signal.SIGCONT)
    worker.process.send_signal(signal.SIGTERM)
    assert worker.process.wait(PATIENCE) == 0
    worker.end()
    assert "has gone" in worker.text
    assert "Traceback" not in worker.text


def test_a_client_says_it_in_its_own_words(start: Start) -> None:
    """Not in gRPC's: the worker's farewell finds the client standing still."""
    worker = start("--insecure")
    with generating(worker) as client:
        os.kill(client.pid, signal.SIGSTOP)
        worker.process.send_signal(signal.SIGINT)
        assert worker.process.wait(PATIENCE) == 0  # as by SIGTERM: it was to end, and did
        os.kill(client.pid, signal.SIGCONT)
        assert client.stderr
        said = b""
        while b"going on without it" not in said:
            assert select.select([client.stderr], [], [], PATIENCE)[0], said
            said += (piece := os.read(client.stderr.fileno(), 1 << 16))
            assert piece, said
    assert "chttp2_transport" not in said.decode()


# What a worker needs to hear of, and writes only at gRPC's usual verbosity, is easily made to happen.
HANDSHAKE = """
import os, socket, sys
from contextlib import suppress
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from ggrun import GgrunError
from ggrun.rpc.placed import RpcOptions
try:
    RpcOptions("127.0.0.1:1", insecure=1).connect()
except GgrunError:
    pass
import grpc
from ggrun.rpc.keys import identity
secrets = identity(Path(sys.argv[1]))
server = grpc.server(ThreadPoolExecutor(1))
pair = (secrets.private_key, secrets.certificate)
port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
server.start()
with socket.create_connection(("127.0.0.1", port)) as plain:
    plain.sendall(b"GET / HTTP/1.1\\r\\n\\r\\n")
    with suppress(ConnectionError):
        while plain.recv(1 << 10):
            pass
server.stop(0).wait()
print(os.environ.get("GRPC_VERBOSITY"))
"""


@pytest.mark.parametrize("users", [None, "INFO"])
def test_grpc_says_nothing_to_clients(
    users: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GRPC_VERBOSITY", raising=False)
    if users:
        monkeypatch.setenv("GRPC_VERBOSITY", users)
    command = [sys.executable, "-c", HANDSHAKE, str(tmp_path / "secrets")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"{users}\n"), done.stderr
    assert ("Handshake failed" in done.stderr) == bool(users)
