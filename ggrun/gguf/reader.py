"""A GGUF model, in one file or in shards: checked metadata, and tensors as views of the mapped files."""

import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from ggrun.gguf.mapped import Tensor
from ggrun.gguf.shards import map_model, outline_model
from ggrun.gguf.types import Format, Value
from ggrun.gguf.values import take


class Declared(Protocol):
    """What a header says of a tensor; see Tensor."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def shape(self) -> tuple[int, ...]:
        """In ggml order."""

    @property
    def format(self) -> Format:
        """How its numbers are stored."""

    @property
    def row_bytes(self) -> int:
        """The bytes of one row."""

    @property
    def nbytes(self) -> int:
        """The bytes of the whole tensor."""


class Outline:
    """What the headers of a model say: `metadata`, and the names, shapes and formats of its `tensors`.

    `Outline.read(path)` needs no more of the files than their headers; GGUFError for what is wrong with one.
    """

    tensors: Mapping[str, Declared]

    def __init__(self, path: Path, metadata: Mapping[str, Value], tensors: Mapping[str, Declared]) -> None:
        self.path, self.metadata, self.tensors = path, dict(metadata), tensors

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "Outline":
        """Read the headers of the file, or of all shards of which it is one."""
        _, header, tensors = outline_model(os.fspath(path))
        return Outline(Path(path), header.metadata, tensors)

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


class GGUF(Outline):
    """An open GGUF model.

    `path` is the file that was named, `paths` all files of the model (several for shards, of which any one
    may be named), `version` the GGUF version, `metadata` the first file's key-value pairs and `tensors` the
    tensors of all files by name. Opening copies no weights. Whatever is wrong with a file is a GGUFError.
    """

    tensors: dict[str, Tensor]

    def __init__(self, path: str | os.PathLike[str]) -> None:
        paths, header, tensors = map_model(os.fspath(path))
        super().__init__(Path(path), header.metadata, tensors)
        self.paths: tuple[Path, ...] = tuple(map(Path, paths))
        self.version: int = header.version

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Open the model at `path`; the same as calling the class."""
        return cls(path)

    def close(self) -> None:
        """Let go of the tensors. The files stay mapped for as long as somebody still holds a view of one."""
        self.tensors = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
