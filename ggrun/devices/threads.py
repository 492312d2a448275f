"""Threads that walk a program together: they spin while there is work, and sleep when there is none."""

import math
import os
import threading
import time
from contextlib import suppress
from pathlib import Path
from weakref import finalize

import numpy as np
import psutil
from numpy.typing import NDArray

from ggrun.devices.cpu_memory import zeros
from ggrun.errors import GgrunError, Interrupted, UsageError
from ggrun.kernels import load_cpu

MOST_THREADS = 512
_PATIENCE = 2_000_000
"""Nanoseconds that an idle worker spins before it sleeps, so that it stays awake from token to token."""
_NAP = 0.005
"""Seconds between two looks of a worker that was woken for nothing."""
_CGROUPS = Path("/sys/fs/cgroup")


def physical_cores(cgroups: Path = _CGROUPS) -> int:
    """The cores that this process may use, hyper-threads counted once: as many as its cgroup has time for."""
    usable = usable_cores(cgroups)
    return max(1, min(usable, psutil.cpu_count(logical=False) or usable))


def usable_cores(cgroups: Path = _CGROUPS) -> int:
    """The same, hyper-threads counted each: for what waits more than it computes."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(usable, _quota(cgroups)))


def _quota(cgroups: Path) -> int:
    """The cores whose whole time a container may take; as good as all when there is no limit."""
    files = [["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]]  # of cgroups v2 and v1
    for names in files:
        with suppress(OSError, ValueError):  # another version, or "max"
            quota, period = (int(word) for name in names for word in (cgroups / name).read_text().split())
            if quota > 0 and period > 0:
                return math.ceil(quota / period)
    return MOST_THREADS


class ProcessLock:
    """A lock that a forked process refuses: whoever held it there is gone, and never lets go of it."""

    def __init__(self) -> None:
        self._lock, self._process = threading.Lock(), os.getpid()

    @property
    def foreign(self) -> bool:
        """Whether this is a process forked from the one that it belongs to."""
        return self._process != os.getpid()

    def here(self) -> threading.Lock:
        """The lock, for `with`; GgrunError in a forked process."""
        if self.foreign:
            raise GgrunError("a model cannot be used in a forked process: load it there")
        return self._lock


class Turnout:
    """How many threads take part: one less while one has to share its core.

    Another program on a core halves what its thread gets done, and all others wait for that at every barrier.
    Without it they are faster; now and then it is tried again.
    """

    _WINDOW = 0.05
    """Seconds of work between two decisions: longer than a system lets one program run before another."""
    _TOO_LONG = 0.3
    """Of that time: what threads may not run, in all. It is 0.5 for one that shares its core with another."""
    _RESTS = (0.25, 8.0)
    """Seconds before it is tried again: at first, and after many trials in vain."""

    def __init__(self, threads: int) -> None:
        self.active, self._threads, self._rest, self._left = threads, threads, self._RESTS[0], 0.0
        self._seconds = self._lost = 0.0
        self._on_trial = False
        self._all_seconds = self._thread_seconds = 0.0

    def note(self, seconds: float, lost: float) -> None:
        """A job took so long; so long, in all, its threads did not run. In seconds."""
        self._seconds, self._lost = self._seconds + seconds, self._lost + lost
        self._left -= seconds
        self._all_seconds += seconds
        self._thread_seconds += self.active * seconds
        if self._seconds > self._WINDOW:
            self._decide()
            self._seconds = self._lost = 0.0

    def mean(self) -> float:
        """How many took part, of the time of all jobs since this was asked before."""
        mean = self._thread_seconds / self._all_seconds if self._all_seconds else float(self.active)
        self._all_seconds = self._thread_seconds = 0.0
        return mean

    def _decide(self) -> None:
        first, last = self._RESTS
        if self.active > 1 and self._lost > self._TOO_LONG * self._seconds:
            if self._on_trial:
                self._rest = min(2 * self._rest, last)
            self.active, self._left, self._on_trial = self.active - 1, self._rest, False
        elif self.active < self._threads:
            if self._left <= 0.0:
                self.active, self._on_trial = self.active + 1, True
        else:
            self._rest, self._on_trial = max(first, self._rest / 2), False


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
        self._busy, self._turnout = self._crew.busy, Turnout(threads)
        finalize(self, self._crew.dismiss)

    def run(self, table: NDArray[np.int64]) -> None:
        """Walk a table of operations [n, 3] (see kernels/cpu/runtime.py) on all threads.

        Interrupted when `interrupt` was called since `resume`: what was to be computed is not.
        """
        with self._busy.here():
            self._crew.check()
            try:
                self._crew.wake()
                control, active, start = self._crew.control, self._turnout.active, time.perf_counter()
                lost = self._runtime.post(control, active, table.ctypes.data, len(table))
                if lost < 0:
                    raise Interrupted("the computation was interrupted")
                self._turnout.note(time.perf_counter() - start, lost / 1e9)
            finally:
                self._crew.rest()

    def mean_threads(self) -> float:
        """How many threads took part since this was asked before: one that shares its core may sit out."""
        return self._turnout.mean()

    def interrupt(self) -> None:
        """End a run that is going on, and those that come; from any thread."""
        self._runtime.abort(self._crew.control)

    def resume(self) -> None:
        """Let runs be again: waits for one that is going on, which must not miss that it is interrupted."""
        with self._busy.here():
            self._runtime.resume(self._crew.control)

    def close(self) -> None:
        """End the threads; a run that is going on is finished first. A forked process has none to end."""
        if not self._busy.foreign:
            with self._busy.here():
                self._crew.dismiss()


class _Crew:
    """The other threads. Apart from ThreadPool, so that they do not keep it alive."""

    def __init__(self, threads: int) -> None:
        self._threads, self._ended, self.busy = threads, False, ProcessLock()
        self._runtime = load_cpu("runtime")
        self._memory = zeros(self._runtime.CONTROL_BYTES)  # where the threads meet
        self.control = int(self._memory.ctypes.data)
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

    def wake(self) -> None:
        self._wanted.set()

    def rest(self) -> None:
        if not self._ended:
            self._wanted.clear()

    def dismiss(self) -> None:
        if not self.busy.foreign:  # a copy of _wanted may be locked for ever, as any lock
            self._ended = True
            self._wanted.set()

    def _work(self, thread: int) -> None:
        job, patience = 0, _PATIENCE
        while self._wanted.wait() and not self._ended:
            done, job = job, self._runtime.serve(self.control, thread, job, patience)
            # No job: the caller is late, or a Ctrl+C took it away before it could let the workers rest.
            patience = _PATIENCE if job != done else 0
            if not patience:
                time.sleep(_NAP)
