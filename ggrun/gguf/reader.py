"""A GGUF model, in one file or in shards: checked metadata, and tensors as views of the mapped files."""

import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ggrun.gguf.mapped import Tensor
from ggrun.gguf.shards import map_model
from ggrun.gguf.types import Value
from ggrun.gguf.values import take


class GGUF:
    """An open GGUF model.

    `path` is the file that was named, `paths` all files of the model (several for shards, of which any one
    may be named), `version` the GGUF version, `metadata` the first file's key-value pairs and `tensors` the
    tensors of all files by name. Opening copies no weights. Whatever is wrong with a file is a GGUFError.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        paths, header, tensors = map_model(os.fspath(path))
        self.paths: tuple[Path, ...] = tuple(map(Path, paths))
        self.version: int = header.version
        self.metadata: dict[str, Value] = header.metadata
        self.tensors: dict[str, Tensor] = tensors

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Open the model at `path`; the same as calling the class."""
        return cls(path)

    @property
    def architecture(self) -> str:
        """The value of `general.architecture`; GGUFError when the file does not say."""
        return self.str_("general.architecture")

    def get(self, key: str, default: Any = None) -> Any:
        """Return a metadata value of any type, or `default` when the key is not there."""
        return self.metadata.get(key, default)

    def int_(self, key: str, default: int | None = None) -> int:
        """Return a whole number; GGUFError when it is not one, or is missing and there is no default."""
        return take(self.metadata, key, int, default, str(self.path))

    def float_(self, key: str, default: float | None = None) -> float:
        """Return a number; errors as in `int_`."""
        return take(self.metadata, key, float, default, str(self.path))

    def bool_(self, key: str, default: bool | None = None) -> bool:
        """Return a bool; errors as in `int_`."""
        return take(self.metadata, key, bool, default, str(self.path))

    def str_(self, key: str, default: str | None = None) -> str:
        """Return a string, in which bytes that are not UTF-8 are surrogate escapes; errors as in `int_`."""
        return take(self.metadata, key, str, default, str(self.path))

    def strings(self, key: str, default: list[str] | None = None) -> list[str]:
        """Return an array of strings; errors as in `int_`."""
        return take(self.metadata, key, list, default, str(self.path))

    def array(self, key: str, default: NDArray[Any] | None = None) -> NDArray[Any]:
        """Return an array of numbers or bools, 1-D, in the file's type; errors as in `int_`."""
        return take(self.metadata, key, np.ndarray, default, str(self.path))

    def close(self) -> None:
        """Let go of the tensors. The files stay mapped for as long as somebody still holds a view of one."""
        self.tensors = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
