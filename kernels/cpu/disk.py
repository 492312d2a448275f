"""Numba's disk cache, such that neither a damaged entry nor a full disk stops a start."""

from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from typing import Any, ClassVar

from numba.core.caching import FunctionCache


class DiskCache(FunctionCache):
    """A function's cache: what is damaged counts as not there, what cannot be written is not kept."""

    keep: ClassVar[bool] = True
    """False: nothing is read or written, where there is no folder for it."""

    on_failure: ClassVar[Callable[[OSError], None]] = staticmethod(lambda error: None)
    """Told why a compiled kernel could not be written."""

    def _index_key(self, sig: Any, codegen: Any) -> Any:
        """What an entry is for: the name has what a function closes over (see runtime.jit).

        Numba pickles that, differently in every process.
        """
        code = sha256(self._py_func.__code__.co_code).hexdigest()
        return sig, codegen.magic_tuple(), (code, self._py_func.__qualname__)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The compiled function, or None."""
        try:
            return super().load_overload(sig, target_context)
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
    if DiskCache.keep:
        compiler._cache = DiskCache(function)
