"""From worker to worker: activations pushed into an inbox of the next one, without a way over the client."""

import hmac
import logging
import secrets
import threading
from collections.abc import Callable, Iterator
from functools import partial
from queue import SimpleQueue
from typing import Any

import grpc

from ggrun.errors import GgrunError
from ggrun.rpc import ggrun_pb2 as pb
from ggrun.rpc.at_once import first
from ggrun.rpc.channel import ACROSS, is_loopback, open_channel, split_address
from ggrun.rpc.framing import split
from ggrun.rpc.part import Inbox
from ggrun.rpc.wire import ProtocolError, shown

log = logging.getLogger(__name__)
KEY = "ggrun-inbox-bin"
"""The name of the metadata with an inbox's key."""
_KEY_BYTES = 32


class Doors:
    """The inboxes that other workers may push to. A key opens one of them once, and one at a time pushes."""

    def __init__(self) -> None:
        self._keys: dict[bytes, Inbox] = {}
        self._inside: dict[Inbox, Callable[[], object]] = {}  # and what ends who pushes
        self._lock = threading.Lock()

    def open(self, inbox: Inbox) -> bytes:
        """A new key for an inbox; an older one is of no use any more."""
        self.close(inbox)
        key = secrets.token_bytes(_KEY_BYTES)
        with self._lock:
            self._keys[key] = inbox
        return key

    def enter(self, key: bytes, cancel: Callable[[], object], most: int) -> Inbox | None:
        """The inbox of a key, which then is used up; None when there is none, or `most` are in.

        cancel    ends who has entered, from any thread
        """
        with self._lock:
            found = [known for known in self._keys if hmac.compare_digest(known, key)]
            if not found or len(self._inside) >= most:
                return None
            inbox = self._keys.pop(found[0])
            self._inside[inbox] = cancel
            return inbox

    def leave(self, inbox: Inbox, cancel: Callable[[], object]) -> None:
        """Who entered has gone."""
        with self._lock:
            if self._inside.get(inbox) == cancel:
                del self._inside[inbox]

    def close(self, inbox: Inbox) -> None:
        """Let nobody in any more, and end who is in."""
        with self._lock:
            self._keys = {key: other for key, other in self._keys.items() if other is not inbox}
            cancel = self._inside.pop(inbox, None)
        if cancel:
            cancel()


class Handoff:
    """The way of one part's results to the next worker.

    insecure    where plain text may go: see WorkerOptions
    sent        is told how many bytes gRPC has taken, from any thread
    lost        is told when it is broken, from any thread
    """

    def __init__(
        self,
        message: "pb.Handoff",
        insecure: int,
        sent: Callable[[int], None],
        lost: Callable[[GgrunError], None],
    ) -> None:
        host, _ = split_address(message.address)
        if len(message.key) != _KEY_BYTES or len(message.fingerprint) not in (0, 32):
            raise ProtocolError("a key or a fingerprint of the wrong size")
        self._allowed = bool(message.fingerprint) or insecure > 1 or (insecure == 1 and is_loopback(host))
        self._address, self._sent, self._lost = message.address, sent, lost
        self._key, self._expected = message.key, message.fingerprint or None
        self._queue: SimpleQueue[pb.Push | None] = SimpleQueue()
        self._channel: Any = None
        self._closed = False

    def connect(self) -> bool:
        """Whether the other worker takes it; if not, there is no way to it from here, and all is closed."""
        timer = threading.Timer(ACROSS, self.close)
        try:
            if not self._allowed:
                raise GgrunError("plain text does not go there")
            # All of it in time: a name server may not answer, which open_channel waits for.
            opened = partial(open_channel, self._address, self._expected, timeout=ACROSS)
            self._channel = first([opened], 1.5 * ACROSS, lambda channel: channel.close())
            call = self._channel.stream_stream(
                "/ggrun.Worker/Inbox",
            )(iter(self._pushes()), metadata=[(KEY, self._key)])
            timer.start()
            next(call)  # the other side says that the key is good
        except Exception as error:  # of many kinds; the client then has results sent to itself
            why = _why(error).removeprefix(f"{self._address}: ")
            log.info("no way to %s: %s", shown(self._address), why)
            self.close()
            return False
        finally:
            timer.cancel()
        threading.Thread(target=self._watch, args=(call,), daemon=True, name="ggrun-handoff").start()
        return True

    def push(self, batch: int, values: bytes) -> None:
        """Send a batch's activations."""
        self._queue.put(pb.Push(batch=batch, values=values))

    def close(self) -> None:
        """End it."""
        self._closed = True
        self._queue.put(None)
        if self._channel:
            self._channel.close()

    def _pushes(self) -> Iterator[bytes]:
        while (push := self._queue.get()) is not None:
            yield from split(pb.InboxRequest(push=push))
            self._sent(len(push.values))  # gRPC asks for another when it has sent one

    def _watch(self, call: Any) -> None:
        try:
            for _ in call:
                pass
            why = "it has ended the way"
        except Exception as error:  # gRPC's
            why = _why(error)
        if not self._closed:
            self._lost(GgrunError(f"the worker at {shown(self._address)} takes no more activations: {why}"))


def _why(error: Exception) -> str:
    """An error in one line: those of gRPC have five."""
    text = error.details() or error.code().name if isinstance(error, grpc.RpcError) else str(error)
    return shown(text)
