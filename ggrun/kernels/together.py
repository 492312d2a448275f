"""Kernels are compiled by several processes: Numba has one lock for all threads of one.

A process of the crew reads names of kernels, a line each, compiles each into the disk cache and answers with
a line. Who asked then finds them there; what a process could not do is compiled as if nobody had tried.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

_LONGEST = ("attend", "matmul")
"""What takes longest to compile, to be begun first."""

_CREW = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from ggrun.kernels.together import serve
serve()
"""


def compile_together(kernels: Sequence[Any], processes: int) -> None:
    """Have those kernels in the disk cache that are not, where more than one can be compiled at once."""
    from ggrun.kernels import load_cpu

    missing = [kernel for kernel in dict.fromkeys(kernels) if not kernel.is_kept]
    crew, disk = min(processes, len(missing)), load_cpu("disk").DiskCache
    if crew < 2 or disk.folder is None or disk.refused:
        return
    missing.sort(key=lambda kernel: kernel.name.endswith(_LONGEST), reverse=True)
    tasks: SimpleQueue[Any] = SimpleQueue()
    done: SimpleQueue[str | None] = SimpleQueue()
    for kernel in missing:
        tasks.put(kernel)
    for _ in range(crew):
        Thread(target=_employ, args=(tasks, done), daemon=True).start()
    while crew:
        name = done.get()
        if name is None:
            crew -= 1
        else:
            load_cpu("runtime").Kernel.on_compile(name)


def _employ(tasks: SimpleQueue[Any], done: SimpleQueue[str | None]) -> None:
    """Start a process, and give it one task after the other."""
    with suppress(OSError), _process() as process:
        with suppress(Empty):
            while True:
                kernel = tasks.get_nowait()
                process.stdin.write(f"{kernel.module} {kernel.name.rpartition('.')[2]}\n")
                process.stdin.flush()
                if not process.stdout.readline():
                    break  # it ended: the rest is for the others
                done.put(kernel.name)
        process.stdin.close()
    done.put(None)


def _process() -> Any:
    command = [sys.executable, "-c", _CREW, json.dumps(sys.path)]
    # It says nothing to the terminal: not even that Ctrl+C came, which it gets as well.
    pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
    return subprocess.Popen(command, text=True, stdin=pipe, stdout=pipe, stderr=nothing)


def serve() -> None:
    """Be one of the crew: compile what stdin names until it ends."""
    from ggrun.kernels import load_cpu

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed is no answer
    for line in sys.stdin:
        module, name = line.split()
        _ = getattr(load_cpu(module), name).compiled
        print(name, file=answers, flush=True)
