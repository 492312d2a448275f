"""A way to a worker that counts bytes, and can break."""

import socket
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self


class Proxy:
    """Passes connections on to a port of this machine.

    up, down    bytes to the worker, and from it
    break_at    bytes to the worker after which all connections are cut, and no more taken; None: never
    """

    def __init__(self, port: int, break_at: int | None = None) -> None:
        self.up = self.down = 0
        self._port, self._break_at = port, break_at
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets = [self._listener]
        self._lock = threading.Lock()
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Cut all connections."""
        for sock in list(self._sockets):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                worker = socket.create_connection(("127.0.0.1", self._port))
                self._sockets += [client, worker]
                for ends in ((client, worker, True), (worker, client, False)):
                    threading.Thread(target=self._pass, args=ends, daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, up: bool) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                with self._lock:
                    self.up += len(data) if up else 0
                    self.down += 0 if up else len(data)
                if self._break_at is not None and self.up > self._break_at:
                    self.close()
                target.sendall(data)
        for sock in (source, target):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
