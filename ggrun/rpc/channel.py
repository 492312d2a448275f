"""Ways to workers: a gRPC channel to exactly the one whose fingerprint is known, or one in plain text."""

import ipaddress
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import grpc

from ggrun.engine.hosts import HostLost
from ggrun.errors import GgrunError, UsageError
from ggrun.rpc.at_once import first
from ggrun.rpc.framing import PIECE
from ggrun.rpc.keys import NAME, check_valid, fingerprint

TIMEOUT = 10.0
"""Seconds to wait for a connection."""
AGAIN = 3.0
"""Seconds to wait for one with a worker that was reached before."""
_LOOK = 2.0
"""Seconds to find out why there was none."""
OPTIONS = [
    ("grpc.max_send_message_length", PIECE),
    ("grpc.max_receive_message_length", PIECE),
    ("grpc.max_metadata_size", 8 << 10),
    ("grpc.so_reuseport", 0),
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),
    # Proxies for the web (http_proxy and its kin) do not know the way to workers.
    ("grpc.enable_http_proxy", 0),
    ("grpc.http2.lookahead_bytes", 4 << 20),
    # A machine that is switched off says nothing: its connections end so.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 30_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 20_000),
]
"""Of both sides."""
TOKEN = "ggrun-token-bin"
"""The name of the metadata with a client's token."""
WANTS_TLS = "/ggrun.Worker/WantsTLS"
"""The method by which a client says in plain text why it goes: gRPC drops what is no HTTP/2 in silence."""


class _NoTLS(GgrunError):
    """Something else than TLS is spoken there."""


@dataclass(frozen=True)
class Certificates:
    """A client's own, for workers that want one: PEM, and the files that have it."""

    certificate: bytes
    private_key: bytes
    files: tuple[str, str]

    @classmethod
    def read(cls, certificate: str, private_key: str) -> Self:
        """Of files. GgrunError when they do not go together, or the certificate is not valid now."""
        files = certificate, private_key
        try:
            own = cls(Path(certificate).read_bytes(), Path(private_key).read_bytes(), files)
            own.show(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
            check_valid(own.certificate, certificate, "make a new one")
        except (ssl.SSLError, ValueError):
            raise GgrunError(
                f"{certificate} and {private_key}: a certificate and its private key, both PEM and the key "
                "without a password, are needed"
            ) from None
        except OSError as error:
            raise GgrunError(f"{error.filename}: {error.strerror}") from None
        return own

    def show(self, context: ssl.SSLContext) -> None:
        """Let connections have it. ssl.SSLError."""
        context.load_cert_chain(*self.files, password="")  # else it would ask the terminal for one


def split_address(address: str) -> tuple[str, int]:
    """The host and the port of host:port or [IPv6]:port; UsageError."""
    host, colon, port = address.rpartition(":")
    bare = ":" in (plain := host.removeprefix("[").removesuffix("]")) and plain == host
    # int() refuses thousands of digits.
    number = int(port) if port.isascii() and port.isdigit() and len(port) < 6 else 0
    if bare or not (colon and plain and 0 < number < 1 << 16):
        raise UsageError(f"{address!r:.60} is no address of a worker: write it as host:port or [IPv6]:port")
    return plain, number


def joined_address(host: str, port: int) -> str:
    """What split_address takes apart."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether a host name can only be this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def open_channel(
    address: str, expected: bytes | None, own: Certificates | None = None, timeout: float = TIMEOUT
) -> Any:
    """A grpc.Channel; expected: the SHA-256 of the worker's certificate, None: plain text.

    HostLost when nobody answers in time, or a GgrunError that says what is not as it should be.
    """
    if expected is None:
        with _connected(address, timeout) as plain:
            return grpc.insecure_channel(_reached(address, plain), OPTIONS)
    with _secured(address, own, timeout) as connection:
        certificate, reached = _certificate(address, connection), _reached(address, connection)
        _check_fingerprint(address, certificate, expected)
        _check_taken(address, own, connection)
    pair = (own.private_key, own.certificate) if own else (None, None)
    credentials = grpc.ssl_channel_credentials(certificate, *pair)
    return grpc.secure_channel(reached, credentials, [*OPTIONS, ("grpc.ssl_target_name_override", NAME)])


def check_answer(address: str, expected: bytes, timeout: float) -> None:
    """GgrunError when nobody with a certificate of that SHA-256 answers there."""
    with _secured(address, None, timeout) as connection:
        _check_fingerprint(address, _certificate(address, connection), expected)


def check_certificates(address: str, own: Certificates | None, timeout: float = TIMEOUT) -> None:
    """GgrunError when the worker's certificate is not valid: gRPC says less clearly why."""
    with _secured(address, own, timeout) as connection:
        try:
            check_valid(_certificate(address, connection), address)
        except ValueError:
            raise GgrunError(f"{address}: its certificate cannot be read") from None


@contextmanager
def saying_why(address: str) -> Iterator[None]:
    """A worker without TLS is told in plain text that this client wants it, and nothing else.

    For an address that the user gave: anybody else's may be of anything.
    """
    try:
        yield
    except _NoTLS:
        with suppress(grpc.RpcError), grpc.insecure_channel(address, OPTIONS) as plain:
            next(plain.stream_stream(WANTS_TLS)(iter(()), timeout=_LOOK))
        raise


def speaks_tls(address: str) -> bool:
    """Whether TLS is spoken at an address that was taken for one of plain text."""
    try:
        with _secured(address, None, _LOOK):
            return True
    except GgrunError:
        return False


def _check_taken(address: str, own: Certificates | None, connection: ssl.SSLSocket) -> None:
    """GgrunError when the worker does not take this side's certificate, or wants one.

    gRPC says less clearly why, and tries again: each time is a line in the worker's log.
    """
    try:
        taken = bool(connection.recv(1))  # HTTP/2 begins with a word of the worker's
    except TimeoutError:
        raise HostLost(address, "cannot be reached: it does not answer") from None
    except OSError:
        taken = False
    if not taken and own:
        raise GgrunError(
            f"{address}: the worker hangs up on {own.files[0]}: one of its --client-ca must have signed it, "
            "and it must be valid by the worker's clock"
        )
    if not taken:
        raise GgrunError(
            f"{address}: the worker hangs up: if it wants a certificate of clients, give --rpc-cert"
        )


@contextmanager
def _secured(address: str, own: Certificates | None, timeout: float) -> Iterator[ssl.SSLSocket]:
    """A connection to whoever is there. Who that is, is not trusted here: the fingerprint decides."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_3  # a client's certificate goes encrypted
    context.set_alpn_protocols(["h2"])
    with _connected(address, timeout) as raw:
        try:
            if own:
                own.show(context)
            secure = context.wrap_socket(raw)
        except ssl.SSLEOFError:
            raise HostLost(address, "cannot be reached: the connection is closed at once") from None
        except ssl.SSLError:
            raise _NoTLS(
                f"{address}: no TLS is spoken there: was the worker started with --insecure?"
            ) from None
        except OSError as error:
            raise _unreachable(address, error) from None
        with secure:
            yield secure


def _certificate(address: str, connection: ssl.SSLSocket) -> bytes:
    """The certificate that is shown there, as PEM."""
    if (der := connection.getpeercert(binary_form=True)) is None:
        raise GgrunError(f"{address}: shows no certificate")
    return ssl.DER_cert_to_PEM_cert(der).encode()


def _check_fingerprint(address: str, certificate: bytes, expected: bytes) -> None:
    if fingerprint(certificate) != expected:
        raise GgrunError(
            f"{address}: its certificate is not the one that was joined: somebody else answers there, or the "
            "worker has made a new one; if so, paste the join line that it printed"
        )


def _connected(address: str, timeout: float) -> socket.socket:
    """A connection; what is left of the time is its time-out. A name may have several addresses."""
    (host, port), deadline = split_address(address), time.monotonic() + timeout
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        left = max(deadline - time.monotonic(), 0.01)
        calls = [partial(_connection, family, end, left) for family, _, _, _, end in found]
        connection = first(calls, left, socket.socket.close)
    except (OSError, UnicodeError) as error:
        raise _unreachable(address, error) from None
    connection.settimeout(max(deadline - time.monotonic(), 0.01))
    return connection


def _connection(family: socket.AddressFamily, end: Any, timeout: float) -> socket.socket:
    connection = socket.socket(family, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout)
        connection.connect(end)
    except BaseException:
        connection.close()
        raise
    return connection


def _reached(address: str, connection: socket.socket) -> str:
    """Which of a name's addresses it was: gRPC would try those that do not answer too, one by one."""
    host, port, *scope = connection.getpeername()
    return address if any(scope) else joined_address(host, port)


def _unreachable(address: str, error: OSError | UnicodeError) -> HostLost:
    if isinstance(error, TimeoutError):
        return HostLost(address, "cannot be reached: it does not answer")
    return HostLost(address, f"cannot be reached: {getattr(error, 'strerror', None) or error}")
