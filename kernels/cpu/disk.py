"""Numba's disk cache, such that neither a damaged entry nor a full disk stops a start."""

import inspect
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

import llvmlite.binding as llvm
from numba.core.caching import CompileResultCacheImpl, FunctionCache, InTreeCacheLocator
from numba.core.runtime import _nrt_python  # type: ignore[attr-defined]  # it is in C

_ENVIRONMENT = re.compile(r"_ZN08NumbaEnv[^\s\",]+")


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

    def reduce(self, compiled: Any) -> Any:
        """What is kept of a compiled function: its machine code, and less beside it than Numba keeps.

        Kernels call each other by address and are linked with nothing: of the bitcode, which is for that,
        only the names are needed by which a kernel is entered. Of the environments, with the Python objects
        of helpers, only those that the code reads: to make the others, which are Numba's own helpers', Numba
        would import its modules.
        """
        whole = super().reduce(compiled)
        try:
            (name, kind, (code, _)), description, *rest, environments = whole
            if (kind, len(rest)) != ("object", 6):
                return whole  # another Numba's, of which this knows nothing
            entries = {description.llvm_cfunc_wrapper_name, description.llvm_cpython_wrapper_name}
            entries &= {function.name for function in compiled.library.get_defined_functions()}
            names = Counter(_ENVIRONMENT.findall(str(compiled.library._final_module)))
            read = tuple(each for each in environments if names[each.env_name] > 1)  # 1: it is declared
        except (AttributeError, TypeError, ValueError):
            return whole
        return (name, kind, (code, _names_alone(sorted(entries)))), description, *rest, read


def _names_alone(names: Iterable[str]) -> bytes:
    """The bitcode of a module in which names are defined, as what cannot be called."""
    lines = (f'@"{name}" = global i8 0' for name in names)
    return bytes(llvm.parse_assembly("\n".join(lines)).as_bitcode())


@cache
def _name_runtime() -> None:
    """Tell the linker where Numba's runtime is.

    As Numba does before it compiles, when it also compiles a part of it: that is in each kernel already.
    """
    for name, address in _nrt_python.c_helpers.items():
        llvm.add_symbol(name if name.startswith("_") else f"NRT_{name}", address)


class DiskCache(FunctionCache):
    """A function's cache: what is damaged counts as not there, what cannot be written is not kept."""

    _impl_class = _Entries

    folder: ClassVar[Path | None] = None
    """Where entries are; None: nothing is read or written."""

    refused: ClassVar[OSError | None] = None
    """Why nothing can be written. What is there is read all the same: it may have been filled for many."""

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
            _name_runtime()
            return self._load_overload(sig, target_context)
        except Exception:  # unpickling what is damaged may raise anything
            # An empty index forgets the entry; the next one is written over its file.
            with suppress(OSError):
                self.flush()
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep a compiled function."""
        if DiskCache.refused:
            DiskCache.on_failure(DiskCache.refused)
            return
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
