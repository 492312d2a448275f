"""A worker's end, as its user sees it: in order, and without words of Python's or gRPC's."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.cli.test_run import listen_to_ctrl_c
from tests.rpc.conftest import Start
from tests.rpc.processes import WorkerProcess
from tests.waiting import PATIENCE, until

ENDLESS = "-c 100000 --ignore-eos -n -1 --no-show-timings -t 1 -p Once".split()


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
