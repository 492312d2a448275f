"""Ctrl+C reaches a computation at once, and not only when its micro-batch is done."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def interruptible(llm: Any) -> Iterator[None]:
    """Interrupt the model when SIGINT comes: Python's own handler waits for the machine code to return."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def watch() -> None:
        while signals := os.read(reader, 64):
            if signal.SIGINT in signals:
                llm.interrupt()
        os.close(reader)

    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=watch, daemon=True, name="ggrun-interrupt").start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writer)  # the watcher reads the end, and goes
