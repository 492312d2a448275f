"""ggrun on a machine of fake cards whose direct copies never end: what users see of that is a process.

python -m tests.cuda.hanging SECONDS ARGUMENTS: what hangs is given up after so many.
"""

import ctypes
import os
import sys
import threading
from typing import Any

from ggrun.cli import interrupt, main
from ggrun.devices.cuda import local, watch
from ggrun.plan.hardware import Speeds
from tests.cuda.fake_cupy import FakeCupy
from tests.cuda.fake_streams import Stream


class Cupy(FakeCupy):
    """All copies between cards hang."""

    def memcpyPeerAsync(self, *args: int) -> None:  # noqa: N802
        super().memcpyPeerAsync(*args)
        self.hold([args[-1]], threading.Event())


as_ever = Stream.synchronize


def never(stream: Stream) -> None:
    """Come back, from a stream that is held: in machine code, and whatever signals come."""
    if stream.held:
        os.write(2, b"it hangs\n")
        lock, libc = ctypes.create_string_buffer(64), ctypes.CDLL(None)  # zeros are a mutex of pthreads
        libc.pthread_mutex_lock(lock)
        libc.pthread_mutex_lock(lock)
    as_ever(stream)


if __name__ == "__main__":
    Stream.synchronize = never  # type: ignore[method-assign]
    modules: Any = sys.modules
    modules["cupy"] = Cupy(memory=1 << 32)
    local._card_speeds = lambda *_: Speeds(1e9, 1e10, 1e10, 1e9)
    watch.LONGEST, watch.LOOK = float(sys.argv.pop(1)), 0.05
    interrupt.GRACE = 0.5
    main()
