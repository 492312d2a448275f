"""Threads that walk a program together: they spin while there is work, and sleep when there is none."""

import os
import threading
from weakref import finalize

import numpy as np
import psutil
from numpy.typing import NDArray

from ggrun.kernels import load_cpu

_PATIENCE = 20_000
"""Idle spins before a worker sleeps: about two milliseconds, so that it stays awake from token to token."""


def physical_cores() -> int:
    """The cores that this process may use, hyper-threads counted once."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(usable, psutil.cpu_count(logical=False) or usable))


class ThreadPool:
    """`threads` threads, of which the one that calls `run` is the first."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._runtime = load_cpu("runtime")
        # Aligned to cache lines: the threads meet here.
        memory = np.zeros(self._runtime.CONTROL_BYTES + 64, np.uint8)
        self._control = memory[-memory.ctypes.data % 64 :]
        self._crew = _Crew(self._control.ctypes.data, threads, memory)
        self._busy = threading.Lock()
        finalize(self, self._crew.dismiss)

    def run(self, table: NDArray[np.int64]) -> None:
        """Walk a table of operations [n, 3] (see kernels/cpu/runtime.py) on all threads."""
        with self._busy:
            self._crew.wake()
            self._runtime.post(self._control.ctypes.data, self.threads, table.ctypes.data, len(table))

    def close(self) -> None:
        """End the threads."""
        self._crew.dismiss()


class _Crew:
    """The other threads. Apart from ThreadPool, so that they do not keep it alive."""

    def __init__(self, control: int, threads: int, memory: NDArray[np.uint8]) -> None:
        self._control, self._threads, self._memory = control, threads, memory
        self._runtime = load_cpu("runtime")
        self._ending = False
        self._wanted = [threading.Event() for _ in range(threads - 1)]
        for i, wanted in enumerate(self._wanted):
            worker = threading.Thread(
                target=self._work, args=(i + 1, wanted), daemon=True, name=f"ggrun-{i + 1}"
            )
            worker.start()

    def wake(self) -> None:
        for wanted in self._wanted:
            wanted.set()

    def dismiss(self) -> None:
        self._ending = True
        self.wake()

    def _work(self, thread: int, wanted: threading.Event) -> None:
        job = 0
        while True:
            wanted.wait()
            wanted.clear()
            if self._ending:
                return
            job = self._runtime.serve(self._control, thread, self._threads, job, _PATIENCE)
