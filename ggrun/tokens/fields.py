"""Checked reading of a model's `tokenizer.ggml.*` metadata, which is untrusted input."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ggrun.tokens.errors import TokenizerError

_PREFIX = "tokenizer.ggml."


class Fields:
    """The `tokenizer.ggml.*` part of a model's metadata.

    Every reader gives its default for a key that is absent and raises `TokenizerError`, naming the key, for a
    value of another type. A token id outside the vocabulary counts as absent, as it does for llama.cpp.
    """

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._metadata = metadata

    def text(self, key: str, default: str = "") -> str:
        """A string."""
        value = self._get(key)
        return default if value is None else self._check(key, value, str, "a string")

    def general(self, key: str) -> str:
        """`general.<key>` where it is a string, else '': such keys only steer details."""
        value = self._metadata.get("general." + key)
        return value if isinstance(value, str) else ""

    def flag(self, key: str, default: bool) -> bool:
        """A truth value."""
        value = self._get(key)
        return default if value is None else bool(self._check(key, value, (bool, int), "true or false"))

    def token(self, key: str, n_vocab: int) -> int | None:
        """A token id in [0, n_vocab)."""
        value = self._get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            raise _wrong(key, "a token id")
        return value if 0 <= value < n_vocab else None

    def strings(self, key: str) -> list[str] | None:
        """A list of strings."""
        value = self._get(key)
        if value is None:
            return None
        if not isinstance(value, list) or set(map(type, value)) - {str}:
            raise _wrong(key, "a list of strings")
        return value

    def integers(self, key: str, length: int) -> list[int] | None:
        """A list of `length` integers."""
        array = self._array(key, length, "iu")
        return None if array is None else list(array.tolist())

    def floats(self, key: str, length: int) -> list[float] | None:
        """A list of `length` finite numbers; NaN and infinities become finite ones."""
        array = self._array(key, length, "f")
        if array is None:
            return None
        lowest = float(np.finfo(np.float32).min)
        return list(np.nan_to_num(array, nan=lowest).tolist())

    def blob(self, key: str) -> bytes:
        """The bytes of a numeric array, b'' for none."""
        value = self._get(key)
        if value is None:
            return b""
        return bytes(self._check(key, value, np.ndarray, "an array of bytes").tobytes())

    def _get(self, key: str) -> Any:
        return self._metadata.get(_PREFIX + key)

    def _check(self, key: str, value: Any, types: type | tuple[type, ...], what: str) -> Any:
        if not isinstance(value, types):
            raise _wrong(key, what)
        return value

    def _array(self, key: str, length: int, kinds: str) -> np.ndarray | None:
        value = self._get(key)
        if value is None:
            return None
        if not isinstance(value, np.ndarray) or value.ndim != 1 or value.dtype.kind not in kinds:
            raise _wrong(key, "a list of " + ("numbers" if kinds == "f" else "integers"))
        if len(value) != length:
            raise TokenizerError(f"{_PREFIX}{key} has {len(value)} entries for a vocabulary of {length}")
        return value


def _wrong(key: str, what: str) -> TokenizerError:
    return TokenizerError(f"{_PREFIX}{key} is not {what}")
