"""The weights of a client's stages: from the worker's own files, from its cache, or from the client."""

import threading
from collections.abc import Mapping
from pathlib import Path

from ggrun.gguf import Tensor
from ggrun.plan.facts import ModelFacts
from ggrun.rpc import ggrun_pb2 as pb
from ggrun.rpc.hashes import Stop, never
from ggrun.rpc.opening import Declared, Opening, wanted
from ggrun.rpc.store import Bytes, Incoming, Library, Store
from ggrun.rpc.wire import ProtocolError

MOST_CHUNK = 4 << 20
"""Bytes of one chunk."""


class Gathered:
    """The tensors that a client's stages need: a Model for the engine."""

    def __init__(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        self.path, self.tensors = path, tensors


class Intake:
    """Finds tensors, and takes in those that are nowhere. Tensors of the same bytes come once.

    Two threads use it: one takes chunks, the other does the rest, as hashing and disks are slow.
    """

    def __init__(self, opening: Opening, library: Library, store: Store) -> None:
        self._opening, self._library, self._store = opening, library, store
        self._needed = {i: t for i, t in enumerate(opening.tensors) if t.sha256}
        sizes = {t.sha256: t.nbytes for t in self._needed.values()}
        if any(t.nbytes != sizes[t.sha256] for t in self._needed.values()):
            raise ProtocolError("tensors of two sizes have the same hash")
        used = wanted(ModelFacts.from_outline(opening.outline), opening.plan, opening.stages)
        if strange := [t.name for t in self._needed.values() if t.name not in used]:
            raise ProtocolError(f"tensor {strange[0]}: these stages do not need it")
        self._found: dict[bytes, Bytes] = {}
        self._coming: dict[int, Incoming] = {}
        self._lock = threading.Lock()  # held for a chunk, and to close: nothing is written after that
        self.received = self.total = 0

    @property
    def quarters(self) -> int:
        """How many quarters of what was missing have come."""
        return 4 * self.received // max(self.total, 1)

    @property
    def complete(self) -> bool:
        """Whether nothing more is to come."""
        return not self._coming

    def look(self, stop: Stop = never) -> list["pb.Want"]:
        """What is missing; GgrunError when the disk has no room for it, Interrupted when stopped."""
        self._store.trim()
        of_digest: dict[bytes, int] = {}
        for i, tensor in self._needed.items():
            of_digest.setdefault(tensor.sha256, i)
        missing = {i for i in of_digest.values() if not self._in_store(self._needed[i])}
        here = self._library.find([self._needed[i] for i in missing], stop)
        self._found |= {
            self._needed[i].sha256: here[t.name] for i in missing if (t := self._needed[i]).name in here
        }
        missing = {i for i in missing if self._needed[i].sha256 not in self._found}
        with self._store.room(sum(self._needed[i].nbytes for i in missing)):
            for i in sorted(missing):
                self._coming[i] = self._store.begin(self._needed[i])
        self.total = sum(incoming.left for incoming in self._coming.values())
        return [pb.Want(tensor=i, offset=incoming.offset) for i, incoming in self._coming.items()]

    def take(self, chunk: "pb.Chunk") -> bool:
        """Take a chunk; whether its tensor has all come. ProtocolError for one that nobody waits for."""
        with self._lock:
            incoming = self._coming.get(chunk.tensor)
            if incoming is None or chunk.offset != incoming.offset:
                raise ProtocolError(
                    f"a chunk of tensor {chunk.tensor} at {chunk.offset} is not what comes next"
                )
            left = incoming.tensor.nbytes - incoming.offset
            if not 0 < len(chunk.data) <= min(left, MOST_CHUNK):
                raise ProtocolError(
                    f"a chunk of {len(chunk.data)} bytes, where up to {min(left, MOST_CHUNK)} fit"
                )
            incoming.write(chunk.data)
            self.received += len(chunk.data)
            return incoming.complete

    def arrived(self, i: int) -> list["pb.Want"]:
        """Check and keep a tensor that has all come. What is missing again: all of one that began wrongly."""
        data = self._coming[i].finish()
        if data is None:
            self.total += self._needed[i].nbytes
            return [pb.Want(tensor=i)]
        self._found[self._needed[i].sha256] = data
        del self._coming[i]
        return []

    def model(self) -> Gathered:
        """All of them, when they are here."""
        tensors = {
            t.name: Tensor(t.name, t.shape, t.format, self._found[t.sha256]) for t in self._needed.values()
        }
        return Gathered(self._opening.outline.path, tensors)

    def close(self) -> None:
        """Let go of what has not come; as much as the cache may have stays on the disk for another try."""
        with self._lock:
            for incoming in self._coming.values():
                incoming.close()
            self._coming.clear()
        self._store.trim()

    def _in_store(self, tensor: Declared) -> bool:
        data = self._store.find(tensor)
        if data is not None:
            self._found[tensor.sha256] = data
        return data is not None
