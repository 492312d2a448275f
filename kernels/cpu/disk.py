"""Numba's disk cache, such that neither a damaged entry nor a full disk stops a start."""

import inspect
import sys
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

from numba.core.caching import CompileResultCacheImpl, FunctionCache, InTreeCacheLocator
from numba.core.runtime.nrt import rtsys


class _Locator(InTreeCacheLocator):
    """What belongs to a function of a source file, in DiskCache.folder."""

    def __init__(self, function: Callable[..., Any], source: str) -> None:
        super().__init__(function, source)
        self._cache_path = f"{DiskCache.folder}/{self.get_suitable_cache_subpath(source)}"


class _Entries(CompileResultCacheImpl):
    """How entries are named and written: as Numba does, wherever its environment variables want them.

    Numba's own choice of a folder is one for the whole process and may change at every compilation.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        source = inspect.getfile(function)
        self._lineno = function.__code__.co_firstlineno
        self._locator = _Locator(function, source)
        self._filename_base = self.get_filename_base(
            f"{Path(source).stem}.{function.__qualname__}", sys.abiflags
        )


class DiskCache(FunctionCache):
    """A function's cache: what is damaged counts as not there, what cannot be written is not kept."""

    _impl_class = _Entries

    folder: ClassVar[Path | None] = None
    """Where entries are; None: nothing is read or written."""

    on_failure: ClassVar[Callable[[OSError], None]] = staticmethod(lambda error: None)
    """Told why a compiled kernel could not be written."""

    def _index_key(self, sig: Any, codegen: Any) -> Any:
        """What an entry is for: the name has what a function closes over (see runtime.jit).

        Numba pickles that, differently in every process.
        """
        code = sha256(self._py_func.__code__.co_code).hexdigest()
        return sig, codegen.magic_tuple(), (code, self._py_func.__qualname__)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The compiled function, or None.

        As Numba's own, but that it does not import first what only compilers need: all that Numba knows of
        numpy, a third of a start. Numba does that itself when it compiles.
        """
        try:
            rtsys.initialize(target_context)  # machine code is linked with Numba's runtime
            return self._load_overload(sig, target_context)
        except Exception:  # unpickling what is damaged may raise anything
            # An empty index forgets the entry; the next one is written over its file.
            with suppress(OSError):
                self.flush()
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep a compiled function."""
        try:
            super().save_overload(sig, data)
        except OSError as error:
            DiskCache.on_failure(error)


def use_disk(compiler: Any, function: Callable[..., Any]) -> None:
    """Give a dispatcher or a CFunc of Numba, before it compiles, this cache."""
    if DiskCache.folder is None:
        return
    try:
        compiler._cache = DiskCache(function)
    except OSError as error:  # the source file is gone
        DiskCache.on_failure(error)


def is_on_disk(compiler: Any) -> bool:
    """Whether there is an entry for a function that has this cache, good or not."""
    cache = compiler._cache
    return isinstance(cache, DiskCache) and Path(cache._cache_file._index_path).exists()
