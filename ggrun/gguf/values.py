"""Taking a metadata value as the type that is needed, or failing with one line that says what is wrong."""

from collections.abc import Mapping
from typing import TypeVar

import numpy as np

from ggrun.gguf.errors import GGUFError, shown
from ggrun.gguf.types import Value

T = TypeVar("T")
_NAMES = {
    bool: "a bool",
    int: "a whole number",
    float: "a number",
    str: "a string",
    list: "a list of strings",
    np.ndarray: "an array of numbers",
}


def take(metadata: Mapping[str, Value], key: str, kind: type[T], default: T | None, path: str) -> T:
    """Return `metadata[key]`, which must be of type `kind`; without a default the key must be there.

    A whole number is also taken as a float; a bool is never taken as a number. Fails with GGUFError.
    """
    value = metadata.get(key, default)
    if value is None:
        raise GGUFError(f"{path}: the metadata key {shown(key)} is missing: not a complete model file")
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise GGUFError(f"{path}: the metadata key {shown(key)} is {_NAMES[type(value)]}, not {_NAMES[kind]}")
    return value
