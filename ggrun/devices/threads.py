"""Threads that walk a program together: they spin while there is work, and sleep when there is none."""

import os
import threading
from weakref import finalize

import numpy as np
import psutil
from numpy.typing import NDArray

from ggrun.errors import GgrunError, Interrupted, UsageError
from ggrun.kernels import load_cpu

MOST_THREADS = 512
_PATIENCE = 2_000_000
"""Nanoseconds that an idle worker spins before it sleeps, so that it stays awake from token to token."""


def physical_cores() -> int:
    """The cores that this process may use, hyper-threads counted once."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(usable, psutil.cpu_count(logical=False) or usable))


class ThreadPool:
    """`threads` threads, of which the one that calls `run` is the first.

    UsageError for more than MOST_THREADS, GgrunError when the system has no more.
    """

    def __init__(self, threads: int) -> None:
        if threads > MOST_THREADS:
            raise UsageError(f"{threads} threads: no more than {MOST_THREADS} can be")
        self.threads = threads
        self._runtime = load_cpu("runtime")
        self._crew = _Crew(threads)
        self._busy = threading.Lock()
        finalize(self, self._crew.dismiss)

    def run(self, table: NDArray[np.int64]) -> None:
        """Walk a table of operations [n, 3] (see kernels/cpu/runtime.py) on all threads.

        Interrupted when `interrupt` was called meanwhile: what was to be computed is not.
        """
        with self._busy:
            self._crew.check()
            try:
                self._crew.wake()
                control, runtime = self._crew.control, self._runtime
                if runtime.post(control, self.threads, table.ctypes.data, len(table)):
                    raise Interrupted("the computation was interrupted")
            finally:
                self._crew.rest()

    def interrupt(self) -> None:
        """End a run that is going on; from any thread."""
        self._runtime.abort(self._crew.control)

    def close(self) -> None:
        """End the threads; a run that is going on is finished first."""
        with self._busy:
            self._crew.dismiss()


class _Crew:
    """The other threads. Apart from ThreadPool, so that they do not keep it alive."""

    def __init__(self, threads: int) -> None:
        self._threads, self._process, self._ended = threads, os.getpid(), False
        self._runtime = load_cpu("runtime")
        # Aligned to cache lines: the threads meet here.
        self._memory = np.zeros(self._runtime.CONTROL_BYTES + 64, np.uint8)
        self.control = int(self._memory.ctypes.data) + 63 & ~63
        # Set while there is work. A worker never clears it: it would miss a job that is posted late.
        self._wanted = threading.Event()
        try:
            for i in range(1, threads):
                threading.Thread(target=self._work, args=(i,), daemon=True, name=f"ggrun-{i}").start()
        except RuntimeError:
            self.dismiss()
            raise GgrunError(f"the system has no room for {threads} threads: give fewer with -t") from None

    def check(self) -> None:
        """GgrunError when the threads are gone: without them a barrier would wait for ever."""
        if self._ended:
            raise GgrunError("the model is closed")
        if self._process != os.getpid():
            raise GgrunError("a model cannot be used in a forked process: load it there")

    def wake(self) -> None:
        self._wanted.set()

    def rest(self) -> None:
        if not self._ended:
            self._wanted.clear()

    def dismiss(self) -> None:
        self._ended = True
        self._wanted.set()

    def _work(self, thread: int) -> None:
        job = 0
        while self._wanted.wait() and not self._ended:
            job = self._runtime.serve(self.control, thread, self._threads, job, _PATIENCE)
