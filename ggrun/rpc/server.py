"""A worker's door: who may come in, how many, and what becomes of their streams."""

import logging
import resource
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import grpc

from ggrun.errors import GgrunError
from ggrun.rpc import ggrun_pb2 as pb
from ggrun.rpc.channel import OPTIONS, TOKEN, WANTS_TLS, joined_address
from ggrun.rpc.framing import messages, split
from ggrun.rpc.handoff import KEY
from ggrun.rpc.keys import Identity
from ggrun.rpc.session import Session
from ggrun.rpc.shop import Shop
from ggrun.rpc.wire import ProtocolError, shown

log = logging.getLogger(__name__)
_LOOK = 1.0
_HANDSHAKE = 5.0
"""Seconds that a connection has until it speaks TLS and HTTP/2."""
_IDLE = 30.0
"""Seconds that one without a stream is kept."""
_MOST_FILES = 1 << 16


class Server:
    """Serves a shop until it is closed.

    identity     None: plain text, and no token
    client_ca    certificates (PEM) of which clients must have one; a token is not needed then
    sessions     the most at a time
    """

    def __init__(
        self, shop: Shop, address: str, identity: Identity | None, client_ca: bytes | None, sessions: int
    ) -> None:
        self._shop, self._most, self._client_ca = shop, sessions, client_ca
        self._identity = identity
        self._sessions: set[Session] = set()
        self._lock, self._closed = threading.Lock(), threading.Event()
        # Each has a thread, as each inbox has; some are left for those that are turned away.
        self._most_inboxes = 2 * sessions
        self._threads = ThreadPoolExecutor(sessions + self._most_inboxes + 16)
        self._server = grpc.server(self._threads, options=[*OPTIONS, *_connections(sessions)])
        self._server.add_generic_rpc_handlers((self._handlers(), _Others(self._no_method)))
        try:
            self.port = self._listen(address)
        except RuntimeError:
            self.port = 0
        if not self.port:
            raise GgrunError(f"{address}: cannot listen there")  # check_port says why
        self._server.start()
        threading.Thread(target=self._watch, daemon=True, name="ggrun-watch").start()

    @property
    def sessions(self) -> int:
        """How many clients there are."""
        return len(self._sessions)

    def wait(self) -> None:
        """Until `stop`."""
        while not self._closed.wait(_LOOK):  # a wait without end would hold signals back
            pass

    def stop(self) -> None:
        """Let `wait` return; from a signal's handler too."""
        self._closed.set()

    def close(self) -> None:
        """End all sessions, and take no more; none of them does or says anything afterwards."""
        self._closed.set()
        for session in list(self._sessions):
            session.close()
        self._server.stop(1.0).wait()
        self._threads.shutdown()  # gRPC does not wait for what computes

    def _listen(self, address: str) -> int:
        if self._identity is None:
            return int(self._server.add_insecure_port(address))
        pair = (self._identity.private_key, self._identity.certificate)
        credentials = grpc.ssl_server_credentials([pair], self._client_ca, self._client_ca is not None)
        return int(self._server.add_secure_port(address, credentials))

    def _handlers(self) -> Any:
        # Bytes come and go as they are: in pieces, and what is no message is for the session to refuse.
        session = grpc.stream_stream_rpc_method_handler(self._session)
        inbox = grpc.stream_stream_rpc_method_handler(self._inbox, None, pb.Pushed.SerializeToString)
        return grpc.method_handlers_generic_handler("ggrun.Worker", {"Session": session, "Inbox": inbox})

    def _session(self, requests: Any, context: Any) -> Iterator[bytes]:
        peer = _peer(context)
        self._check_token(peer, context)
        session = Session(self._shop, peer, context.cancel)
        with self._lock:
            full = len(self._sessions) >= self._most
            if not full:
                self._sessions.add(session)
        if full:
            text = f"the worker has {self._most} clients, and takes no more (--max-clients)"
            self._refuse(peer, context, grpc.StatusCode.RESOURCE_EXHAUSTED, text)
        log.info("%s: has come", peer)
        try:
            for reply in session.answer(requests):
                yield from split(reply)
        finally:
            with self._lock:
                self._sessions.discard(session)
            log.info("%s: has gone", peer)

    def _inbox(self, pushes: Any, context: Any) -> Iterator["pb.Pushed"]:
        peer = _peer(context)
        doors, cancel = self._shop.doors, context.cancel
        inbox = doors.enter(_metadata(context, KEY), cancel, self._most_inboxes)
        if inbox is None:
            text = "no such inbox, or too many of them are in use"
            self._refuse(peer, context, grpc.StatusCode.UNAUTHENTICATED, text)
            return
        try:
            yield pb.Pushed()
            for _, push in messages(pb.InboxRequest, pushes, lambda _: inbox.room):
                inbox.put(push)
        except ProtocolError as error:
            self._refuse(peer, context, grpc.StatusCode.INVALID_ARGUMENT, str(error))
        finally:
            doors.leave(inbox, cancel)

    def _no_method(self, name: str, _: Any, context: Any) -> Iterator[bytes]:
        wants_tls = "it wants TLS, and this worker was started with --insecure"
        other = f"there is no {shown(name)}: what came is no client of ggrun"
        text = wants_tls if name == WANTS_TLS else other
        self._refuse(_peer(context), context, grpc.StatusCode.UNIMPLEMENTED, text)
        return iter(())

    def _check_token(self, peer: str, context: Any) -> None:
        """Before anything that the client sends is read."""
        if self._identity is None or self._client_ca is not None:
            return
        if not self._identity.knows(_metadata(context, TOKEN)):
            text = "wrong token: paste the join line that ggrun worker printed"
            self._refuse(peer, context, grpc.StatusCode.UNAUTHENTICATED, text)

    def _refuse(self, peer: str, context: Any, code: Any, text: str) -> None:
        """Say it on both sides, in one line; raises gRPC's own exception."""
        log.warning("%s: refused: %s", peer, text)
        context.abort(code, text)

    def _watch(self) -> None:
        while not self._closed.wait(_LOOK):
            for session in list(self._sessions):
                session.check()


class _Others(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Answers methods that there are not: gRPC would refuse them without a line in the log."""

    def __init__(self, refuse: Any) -> None:
        self._refuse = refuse

    def service(self, details: Any) -> Any:
        """The handler of a call."""
        return grpc.stream_stream_rpc_method_handler(partial(self._refuse, details.method))


def check_port(host: str, port: int) -> None:
    """GgrunError when a worker cannot listen there; gRPC would not say why."""
    address = joined_address(host, port)
    try:
        family, kind, *_, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
            probe.listen()
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or "no name of a machine"
        raise GgrunError(f"{address}: cannot listen there: {why}") from None


def _connections(sessions: int) -> list[tuple[str, int]]:
    """Limits for connections, so that files can be opened however many come and say nothing.

    A client has one for its session, and takes a look at the certificate first; inboxes come on top.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    return [
        ("grpc.max_allowed_incoming_connections", min(4 * sessions + 64, files // 2)),
        ("grpc.server_handshake_timeout_ms", int(1000 * _HANDSHAKE)),
        ("grpc.max_connection_idle_ms", int(1000 * _IDLE)),
    ]


def _metadata(context: Any, name: str) -> bytes:
    found = dict(context.invocation_metadata()).get(name, b"")
    return found if isinstance(found, bytes) else b""


def _peer(context: Any) -> str:
    """The client's address, as gRPC writes it: ipv4:127.0.0.1:1234."""
    kind, _, address = str(context.peer()).partition(":")
    return address if kind in ("ipv4", "ipv6") else kind
