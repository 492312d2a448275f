"""A worker's weights: tensors by the SHA-256 of their bytes, in files that were there or have come."""

import errno
import logging
import mmap
import os
import re
import secrets
import shutil
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ggrun.errors import GgrunError, Interrupted
from ggrun.gguf import GGUF, Outline
from ggrun.rpc.hashes import Stop, check, hashes, never
from ggrun.rpc.opening import Declared

log = logging.getLogger(__name__)
_ROOM = 1 << 30  # bytes of a disk that are left to others
_NAME = re.compile(r"([0-9a-f]{2})[0-9a-f]{62}((\.\d+)?\.part)?")

Bytes = NDArray[np.uint8]


class Store:
    """Tensors that came over the network, a file each; the least recently used go beyond the limit.

    limit    bytes, kept to from the start and at the begin and the end of each load; what sessions still use
             may be more for a while. 0: nothing is kept.

    A tensor whose bytes have all come, and are right, is `ab/abcd...`, its SHA-256. What is still coming is a
    `.NUMBER.part` of its own for each client; one that was broken off is a `.part`, and the next to take that
    tensor in goes on with it.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder, self._limit = folder, limit
        self._lock, self._beginning = threading.Lock(), threading.Lock()
        self._coming: dict[Path, Incoming] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise GgrunError(f"{folder}: {error.strerror}: give another folder with --cache-dir") from None
        self.trim()

    def find(self, tensor: Declared) -> Bytes | None:
        """A tensor's bytes, if they came before."""
        path = self._path(tensor.sha256)
        with suppress(OSError, ValueError):  # ValueError: it is empty
            found = _mapped(path)
            if len(found) == tensor.nbytes:
                os.utime(path)
                return found
        return None

    @contextmanager
    def room(self, nbytes: int) -> Iterator[None]:
        """Held while so many bytes are begun; GgrunError when the disk has not got them.

        What others have begun and has not come yet is theirs. One at a time looks, and begins.
        """
        with self._beginning:
            with self._lock:
                coming = sum(incoming.left for incoming in self._coming.values())
            free = shutil.disk_usage(self._folder).free
            if nbytes > free - coming - _ROOM:
                raise GgrunError(
                    f"the worker has no room for {_mib(nbytes)} MiB of weights in {self._folder}: "
                    f"{free >> 20} MiB are free, of which {_mib(coming + _ROOM)} are left to others; start "
                    "it with --cache-dir on another disk, or with a smaller --cache-size or -nc, which clear "
                    "this one"
                )
            yield

    def begin(self, tensor: Declared) -> "Incoming":
        """Take in a tensor, from where it was broken off before. GgrunError when that cannot be written."""
        incoming = Incoming(self, tensor, self._path(tensor.sha256))
        with self._lock:
            self._coming[incoming.part] = incoming
        try:
            incoming.begin()
        except OSError as error:
            self.ended(incoming)
            raise self.failed(error) from None
        return incoming

    def failed(self, error: OSError) -> GgrunError:
        """An error of the disk's, with the folder."""
        return GgrunError(f"the worker's cache, {self._folder}: {error.strerror}")

    def ended(self, incoming: "Incoming") -> None:
        """Nobody writes this any more."""
        with self._lock:
            self._coming.pop(incoming.part, None)

    def trim(self) -> None:
        """Remove what was not used for the longest time. What is mapped stays there for who maps it."""
        with self._lock:
            files = sorted(self._files(), key=lambda pair: pair[1].st_mtime)
            total = sum(status.st_size for _, status in files)
            for path, status in files:
                if total <= self._limit:
                    break
                with suppress(OSError):
                    path.unlink()
                    total -= status.st_size

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        """The store's own: a user may have pointed --cache-dir at anything."""
        for path in self._folder.glob("??/*"):
            name = _NAME.fullmatch(path.name)
            if name is None or name[1] != path.parent.name or path in self._coming:
                continue
            with suppress(OSError):
                status = path.lstat()
                if stat.S_ISREG(status.st_mode):
                    yield path, status

    def _path(self, digest: bytes) -> Path:
        name = digest.hex()
        return self._folder / name[:2] / name


class Incoming:
    """A tensor that comes in chunks, in order. Its file is open only while it is used."""

    def __init__(self, store: Store, tensor: Declared, path: Path) -> None:
        self.tensor, self.offset = tensor, 0
        # Other workers may share the folder.
        self.part = path.with_suffix(f".{secrets.randbits(63)}.part")
        self._store, self._path = store, path
        self._begun = 0  # where, after what was here before

    @property
    def complete(self) -> bool:
        """Whether all bytes are here."""
        return self.offset == self.tensor.nbytes

    @property
    def left(self) -> int:
        """Bytes that have not come."""
        return self.tensor.nbytes - self.offset

    def begin(self) -> None:
        """Take over what was broken off, if it can be a beginning of this. OSError."""
        self._path.parent.mkdir(exist_ok=True)
        with suppress(FileNotFoundError):  # of several only one gets it
            self._path.with_suffix(".part").rename(self.part)
            status = self.part.lstat()
            if not stat.S_ISREG(status.st_mode) or status.st_size >= self.tensor.nbytes:
                self.part.unlink()
            else:
                self.offset = self._begun = status.st_size

    def write(self, data: bytes) -> None:
        """Take what follows."""
        try:
            with open(self.part, "ab", opener=_opened) as file:
                file.write(data)
        except OSError as error:
            raise self._store.failed(error) from None
        self.offset += len(data)

    def finish(self) -> Bytes | None:
        """The tensor's bytes. None when they are wrong, but began with what was here before: it begins again.

        GgrunError when all that came is not what was announced. What is looked at is the file, not what
        came, and it is on the disk before it has its name: whoever finds that name trusts it.
        """
        try:
            with open(self.part, "r+b", opener=_opened) as file:
                os.fsync(file.fileno())
            data = _mapped(self.part)
            if sha256(data.data).digest() != self.tensor.sha256:
                self._again()
                return None
            if (there := self._store.find(self.tensor)) is not None:  # another client was faster
                self.part.unlink()
                data = there
            else:
                self.part.replace(self._path)
        except OSError as error:
            raise self._store.failed(error) from None
        self._store.ended(self)
        return data

    def close(self) -> None:
        """Give it up; what has come stays for another try."""
        with suppress(OSError):
            self.part.replace(self._path.with_suffix(".part"))
        self._store.ended(self)

    def _again(self) -> None:
        """Begin at the first byte; GgrunError when that was so already."""
        self.part.unlink(missing_ok=True)
        if not self._begun:
            name = self.tensor.name
            raise GgrunError(f"tensor {name}: what came has another SHA-256 than was announced")
        self.offset = self._begun = 0


class Library:
    """The worker's own model files: all *.gguf in and below a folder.

    A tensor is hashed when a client wants one of its name, shape and format, and never again while the file
    stays as it is.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def find(self, tensors: list[Declared], stop: Stop = never) -> dict[str, Bytes]:
        """The bytes of as many of the tensors as there are, by name. Interrupted when stopped."""
        found: dict[str, Bytes] = {}
        wanted = {t.name: t for t in tensors}
        for path in sorted(self._folder.rglob("*.gguf")) if self._folder and wanted else ():
            check(stop)
            try:
                found |= self._in_file(path, {n: t for n, t in wanted.items() if n not in found}, stop)
            except Interrupted:
                raise
            except (GgrunError, OSError) as error:  # no model, or one that is just being written or removed
                log.warning("%s is left out: %s", path, error)
        return found

    def _in_file(self, path: Path, wanted: dict[str, Declared], stop: Stop) -> dict[str, Bytes]:
        declared = Outline.read(path).tensors
        alike = [
            name
            for name, t in wanted.items()
            if (d := declared.get(name)) and (d.shape, d.format) == (t.shape, t.format)
        ]
        if not alike:
            return {}
        model = GGUF(path)
        digests = hashes(model, alike, stop=stop)
        return {n: model.tensors[n].data for n in alike if digests[n] == wanted[n].sha256}


def _mapped(path: Path) -> Bytes:
    with open(path, "rb", opener=_opened) as file:
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)


def _opened(path: str, flags: int) -> int:
    """A file of the store's own. OSError for a link or a pipe: others may write where --cache-dir is."""
    file = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(errno.EINVAL, "no file of the cache's")
    return file


def _mib(nbytes: int) -> int:
    """Rounded up: nothing is none."""
    return -(-nbytes >> 20)
