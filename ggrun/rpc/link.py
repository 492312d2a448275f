"""A client's stream to a worker: messages out, replies in, and whether the worker is still there."""

import threading
import time
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any

import grpc

from ggrun import __version__
from ggrun.engine.hosts import HostLost
from ggrun.errors import GgrunError
from ggrun.rpc import PROTOCOL
from ggrun.rpc import ggrun_pb2 as pb
from ggrun.rpc.channel import (
    TIMEOUT,
    TOKEN,
    Certificates,
    check_certificates,
    open_channel,
    saying_why,
    speaks_tls,
)
from ggrun.rpc.framing import messages, split
from ggrun.rpc.keys import Key
from ggrun.rpc.wire import SMALL, ProtocolError, Room, shown

BEAT = 2.0
"""Seconds of silence after which the worker is asked whether it is there."""
SILENCE = 10.0
"""Seconds of silence after which it is lost; see Link.busy."""
_FAREWELL = 2.0
"""Seconds that the worker has to end a session."""
_BALLAST = 256 << 10
_PINGS, _LOADED_PINGS = 8, 3


class Link:
    """One session with a worker. After an error or the worker's loss, `error` says why it is no more.

    host        the worker's address (host:port), which is its name in plans
    key         None: plain text
    timeout     seconds until it must have answered
    """

    def __init__(
        self, host: str, key: Key | None, own: Certificates | None = None, timeout: float = TIMEOUT
    ) -> None:
        deadline = time.monotonic() + timeout
        self.host, self.key, self._own = host, key, own
        self.error: GgrunError | None = None
        self.in_use = False
        """A model is loaded there: whatever ends the session, but for `close`, is the worker's loss now."""
        self.busy = 0.0
        """Seconds that a large message may take to come: a ping, or its answer, waits behind it."""
        self._requests: SimpleQueue[pb.Request | None] = SimpleQueue()
        self._handlers: dict[str, Callable[[Any], None]] = {"pong": self._pong}
        self._rooms: dict[str, Room] = {}
        self._ended: list[Callable[[GgrunError], None]] = []
        self._checks: list[Callable[[], None]] = []
        self._heard, self._ping, self._awaited = time.monotonic(), 0, 0
        self._ponged = threading.Event()
        self._lock = threading.Lock()
        self._until: float | None = None  # from `leave` to `close`: when that waits no longer
        with saying_why(host):
            self._channel = open_channel(host, key.fingerprint if key else None, own, timeout)
        self._call = self._channel.stream_stream("/ggrun.Worker/Session")(
            iter(self._outgoing()), metadata=[(TOKEN, key.token)] if key else []
        )
        self._replies = messages(pb.Reply, self._incoming(), lambda kind: self._rooms.get(kind, SMALL))
        self.welcome = self._hello(deadline)
        self._reader = threading.Thread(target=self._read, daemon=True, name=f"ggrun-{host}")
        self._reader.start()
        threading.Thread(target=self._watch, daemon=True, name=f"ggrun-{host}-beat").start()

    def send(self, **kind: Any) -> None:
        """Send a message, as in send(ping=pb.Ping()); raises the error of a link that is no more."""
        if self.error:
            raise self.error
        self._requests.put(pb.Request(**kind))

    def on(self, kind: str, handler: Callable[[Any], None], room: Room = SMALL) -> None:
        """Call this with each reply of a kind, in the thread that reads; a GgrunError ends the link.

        room    of such a reply: a larger one ends it too
        """
        self._handlers[kind], self._rooms[kind] = handler, room

    def on_end(self, told: Callable[[GgrunError], None]) -> None:
        """Call this once, with the error, when the link is no more."""
        with self._lock:
            self._ended.append(told)
            error = self.error
        if error:
            told(error)

    def on_beat(self, check: Callable[[], None]) -> None:
        """Call this every second or so; a GgrunError ends the link."""
        self._checks.append(check)

    def measure(self) -> tuple[float, float]:
        """Seconds of a message one way, and bytes a second, measured now."""
        latency = min(self._round(b"") for _ in range(_PINGS)) / 2
        loaded = min(self._round(bytes(_BALLAST)) for _ in range(_LOADED_PINGS))
        return latency, _BALLAST / max(loaded - 2 * latency, 1e-6)

    @property
    def silence(self) -> float:
        """Seconds since the worker was last heard."""
        return time.monotonic() - self._heard

    def leave(self) -> None:
        """Tell the worker that it ends; `close` waits for that."""
        if self._stop(GgrunError(f"{self.host}: the connection is closed")):
            quiet = self.silence > 2 * BEAT + self.busy  # it may well have lost its power
            self._until = time.monotonic() + (_FAREWELL / 10 if quiet else _FAREWELL)

    def close(self) -> None:
        """End it, when the worker has given back what this session had: who comes next finds it free."""
        self.leave()
        if self._until is not None:
            try:
                self._reader.join(max(0.0, self._until - time.monotonic()))
            finally:
                self._until = None
                self._hang_up()

    def fail(self, error: GgrunError) -> None:
        """End it for a reason; the first one counts."""
        if self._stop(error):
            self._hang_up()

    # ---------------------------------------------------------------- inside

    def _stop(self, error: GgrunError) -> bool:
        """Say nothing more; whether it was not at its end before."""
        with self._lock:
            if self.error:
                return False
            self.error = error
            told = list(self._ended)
        self._requests.put(None)
        self._ponged.set()
        for tell in told:
            tell(error)
        return True

    def _hang_up(self) -> None:
        self._call.cancel()
        self._channel.close()

    def _hello(self, deadline: float) -> "pb.Welcome":
        self.send(hello=pb.Hello(protocol=PROTOCOL, version=__version__))
        late = HostLost(self.host, "cannot be reached: it does not answer")
        timer = threading.Timer(deadline - time.monotonic(), self.fail, [late])
        timer.daemon = True
        timer.start()
        try:
            found = self._welcomed(*next(self._replies))
        except (grpc.RpcError, StopIteration) as error:
            if self.error is None:
                self.fail(self._refused(self._explained(error), deadline))
        except GgrunError as error:
            self._end(error)
        finally:
            timer.cancel()
        if self.error:
            raise self.error
        self._heard = time.monotonic()
        return found

    def _refused(self, why: GgrunError, deadline: float) -> GgrunError:
        """Why there was no answer to Hello, if more is known."""
        if not isinstance(why, HostLost):
            return why
        if self.key is None:
            tls = GgrunError(f"{self.host}: the worker there speaks TLS: leave --insecure out")
            return tls if speaks_tls(self.host) else why
        try:
            check_certificates(self.host, self._own, max(deadline - time.monotonic(), 0.01))
        except GgrunError as error:
            return error
        return why

    def _welcomed(self, kind: str, reply: Any) -> "pb.Welcome":
        if kind == "failed":
            raise GgrunError(f"{self.host}: {shown(reply.text)}")
        if not isinstance(reply, pb.Welcome) or reply.protocol != PROTOCOL:
            raise ProtocolError(f"{self.host}: what answers there is no worker of ggrun")
        return reply

    def _outgoing(self) -> Iterator[bytes]:
        while (request := self._requests.get()) is not None:
            yield from split(request)

    def _incoming(self) -> Iterator[bytes]:
        for piece in self._call:
            if not self.error:  # what comes late is nobody's; the end is still to come
                yield piece

    def _read(self) -> None:
        try:
            for kind, reply in self._replies:
                self._heard = time.monotonic()
                if (handler := self._handlers.get(kind)) is None:
                    raise ProtocolError(f"{self.host}: the worker sent {kind}, which nobody waits for")
                handler(reply)
            self._end(HostLost(self.host, "the worker has ended the session"))
        except grpc.RpcError as error:
            self._end(self._explained(error))
        except GgrunError as error:
            self._end(error)

    def _end(self, error: GgrunError) -> None:
        """It ends, and this side has not wished it."""
        why = str(error).removeprefix(f"{self.host}: ")
        if self.in_use and not isinstance(error, HostLost):
            error = HostLost(self.host, why)
        elif isinstance(error, ProtocolError):
            error = ProtocolError(f"{self.host}: {why}")
        self.fail(error)

    def _explained(self, error: Any) -> GgrunError:
        if not isinstance(error, grpc.RpcError):
            return HostLost(self.host, "the worker has ended the session")
        code, details = error.code(), shown(error.details() or "")
        if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.RESOURCE_EXHAUSTED):
            return GgrunError(f"{self.host}: {details}")
        return HostLost(self.host, f"the worker is lost: {details or code.name}")

    def _watch(self) -> None:
        while self.error is None:
            silent = self.silence
            if silent > SILENCE + self.busy:
                self.fail(HostLost(self.host, f"the worker has not answered for {silent:.0f} seconds"))
            elif silent > BEAT / 2:
                self._requests.put(pb.Request(ping=pb.Ping()))
            try:
                for check in list(self._checks):
                    check()
            except GgrunError as error:
                self.fail(error)
            left = SILENCE + self.busy - self.silence
            time.sleep(min(BEAT / 2, max(left, BEAT / 20)))

    def _pong(self, pong: "pb.Pong") -> None:
        if pong.number == 0:  # of a heartbeat
            return
        if pong.number != self._awaited:
            raise ProtocolError(f"{self.host}: the worker answers a ping that was not sent")
        self._awaited = 0
        self._ponged.set()

    def _round(self, ballast: bytes) -> float:
        """Seconds until a ping is answered."""
        self._ping += 1
        self._awaited = self._ping
        self._ponged.clear()
        start = time.perf_counter()
        self.send(ping=pb.Ping(number=self._ping, ballast=ballast))
        if self._ponged.wait(TIMEOUT) and self.error is None:
            return time.perf_counter() - start
        raise self.error or HostLost(self.host, "the worker does not answer")
