"""What gRPC's native code writes to stderr: of a client nothing that its user needs; of a worker refused
handshakes, of which Python learns in no other way.
"""

import logging
import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)
_VERBOSITY = "GRPC_VERBOSITY"
_HANDSHAKE = re.compile(r"Handshake failed with error.*OPENSSL_internal:(\w+)")
_MEANT = {
    "WRONG_VERSION_NUMBER": "no TLS: plain text came",
    "HTTP_REQUEST": "no TLS: plain text came",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "the client has no certificate, and one is needed here",
    "CERTIFICATE_VERIFY_FAILED": "the client's certificate is expired, or none of those that are taken here",
}


@contextmanager
def quiet_import() -> Iterator[None]:
    """What is imported meanwhile is gRPC of a client, whose users read of all that happens in our words.

    It looks at GRPC_VERBOSITY only then. Who has set that decides; processes that are started later, of which
    one may be a worker's, find it as it was.
    """
    if _VERBOSITY in os.environ:
        yield
        return
    os.environ[_VERBOSITY] = "ERROR"
    try:
        yield
    finally:
        del os.environ[_VERBOSITY]


@contextmanager
def native_lines() -> Iterator[None]:
    """While it lasts, such lines go to the log in plain words, and Python's stderr past them."""
    ours, (reader, writer) = os.dup(2), os.pipe()
    os.dup2(writer, 2)
    os.close(writer)
    before, sys.stderr = sys.stderr, os.fdopen(ours, "w", buffering=1, errors="replace")
    thread = threading.Thread(target=_translate, args=(reader,), daemon=True, name="ggrun-native")
    thread.start()
    try:
        yield
    finally:
        os.dup2(ours, 2)  # which closes the pipe: the thread reads to its end
        thread.join(1)
        sys.stderr.close()
        sys.stderr = before


def translated(line: str) -> str | None:
    """What a line means; None when it is about no handshake."""
    found = _HANDSHAKE.search(line)
    if found is None:
        return None
    reason = found[1]
    return f"a connection: refused: {_MEANT.get(reason, f'a TLS handshake failed ({reason})')}"


def _translate(reader: int) -> None:
    with os.fdopen(reader, errors="replace") as lines:
        for line in lines:
            if meaning := translated(line):
                log.warning("%s", meaning)
            else:
                sys.stderr.write(line)
