"""A way to a worker that counts bytes, takes its time, and can break."""

import socket
import threading
import time
from contextlib import suppress
from queue import SimpleQueue
from types import TracebackType
from typing import Self

Way = SimpleQueue[tuple[float, bytes] | None]


class Proxy:
    """Passes connections on to a worker.

    delay       seconds that bytes are on their way
    pace        seconds that a piece of 64 KiB takes at least
    most        connections that are passed on; those that follow are cut
    at          where it listens
    up, down    bytes to the worker, and from it
    break_at    bytes to the worker after which all connections are cut, and no more taken; None: never
    """

    def __init__(
        self,
        port: int,
        break_at: int | None = None,
        *,
        host: str = "127.0.0.1",
        delay: float = 0.0,
        pace: float = 0.0,
        most: int = 1000,
        at: tuple[str, int] = ("127.0.0.1", 0),
    ) -> None:
        self.up = self.down = 0
        self._to, self._break_at, self._delay, self._left = (host, port), break_at, delay, most
        self._pace = pace
        self._listener = socket.create_server(at)
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()
        self.address = f"{at[0]}:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Cut all connections, and take no more."""
        self._cut([self._listener])
        self.cut()

    def cut(self, since: int = 0) -> None:
        """Cut connections, but for the first few that there were."""
        self._cut(self._sockets[2 * since :])

    def _cut(self, sockets: list[socket.socket]) -> None:
        for sock in sockets:
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
                self._left -= 1
                if self._left < 0:
                    client.close()
                    continue
                worker = socket.create_connection(self._to)
                self._sockets += [client, worker]
                for sock in (client, worker):
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for source, target, up in ((client, worker, True), (worker, client, False)):
                    way: Way = SimpleQueue()
                    threading.Thread(target=self._read, args=(source, way), daemon=True).start()
                    threading.Thread(target=self._write, args=(target, way, up), daemon=True).start()

    def _read(self, source: socket.socket, way: "Way") -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                way.put((time.perf_counter() + self._delay, data))
        way.put(None)

    def _write(self, target: socket.socket, way: "Way", up: bool) -> None:
        with suppress(OSError):
            while item := way.get():
                while (left := item[0] - time.perf_counter()) > 0:
                    time.sleep(max(0.0, left - 1e-4))
                target.sendall(item[1])
                time.sleep(self._pace)
                with self._lock:
                    self.up += len(item[1]) if up else 0
                    self.down += 0 if up else len(item[1])
                if self._break_at is not None and self.up > self._break_at:
                    self.close()
            target.shutdown(socket.SHUT_RDWR)
        target.close()
