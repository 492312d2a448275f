"""A worker in a process of its own."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from ggrun.arch.config import Config
from ggrun.gguf import GGUF
from ggrun.plan import Plan, Stage, whole
from ggrun.rpc import keys
from ggrun.rpc.workers import connect
from tests.waiting import PATIENCE, ended, until


class WorkerProcess:
    """`ggrun worker` with flags; its secrets and its cache are in a folder of its own.

    inside    a command that runs it, as in a network of its own
    module    ggrun, or what stands for it
    """

    def __init__(self, folder: Path, *flags: str, inside: Sequence[str] = (), module: str = "ggrun") -> None:
        self.folder, self._inside, self._module = folder, inside, module
        self._flags = flags
        self.start("0")
        joining = next((line for line in self.lines if "ggrun join" in line), None)
        self.key = joining.split()[-1] if joining else None
        """What is to be pasted; None with --insecure."""

    def start(self, port: str) -> None:
        """Start it, or start it again."""
        self.lines: list[str] = []
        env = {**os.environ, "GGRUN_CONFIG": str(self.folder)}
        cache = str(self.folder / "cache")
        command = [
            *self._inside,
            sys.executable,
            "-m",
            self._module,
            "worker",
            "-p",
            port,
            "-t",
            "1",
            "--cache-dir",
            cache,
        ]
        if "-d" not in self._flags:
            command += ["-d", "cpu:0:1GB"]
        self.process = subprocess.Popen(
            [*command, *self._flags], env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self._reader = threading.Thread(target=self._read, args=(self.process, self.lines), daemon=True)
        self._reader.start()
        self.port = int(self.wait_for(r"listening at .*:(\d+)")[1])

    @property
    def address(self) -> str:
        """host:port."""
        return f"127.0.0.1:{self.port}"

    @property
    def text(self) -> str:
        """All that it has said."""
        return "\n".join(self.lines)

    def join(self) -> None:
        """Let this process use it."""
        assert self.key
        keys.join(self.address, keys.Key.parse(self.key))

    @property
    def has_its_memory(self) -> bool:
        """Whether nobody has any of its device's."""
        with closing(connect(self.address, insecure=int(self.key is None))) as found:
            (device,) = found.devices
        return device.free == device.memory

    def device(self, name: str = "cpu:0:1GB") -> str:
        """What one of its devices is called in plans."""
        return f"{self.address}/{name}"

    def wait_for(self, pattern: str, times: int = 1) -> re.Match[str]:
        """Wait until so many lines have said something, and give the last of them."""

        def found() -> list[re.Match[str]]:
            over = not self._reader.is_alive()  # looked at before the lines: then there are all
            said = [match for line in list(self.lines) if (match := re.search(pattern, line))]
            assert len(said) >= times or not over, f"the worker never said {pattern!r}, but: {self.text}"
            return said[times - 1 : times]

        return until(found, f"what says {pattern!r}")[0]

    def kill(self) -> None:
        """As kill -9."""
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        """Let it end; it must do so in good order."""
        if self.process.poll() is None:
            self.process.terminate()
            assert self.process.wait(PATIENCE) == 0, self.text
        ended([self._reader])

    def _read(self, process: "subprocess.Popen[str]", lines: list[str]) -> None:
        assert process.stdout
        with process.stdout:
            for line in process.stdout:
                lines.append(line.rstrip())


def plan_of(path: Path, *stages: tuple[str, int]) -> Plan:
    """Stages of one device each: its name, and the half layer where it ends."""
    config = Config.from_gguf(GGUF(path))
    begin, found = 0, []
    for device, end in stages:
        found.append(Stage((begin, end), (whole(config, device),)))
        begin = end
    return Plan(tuple(found))
