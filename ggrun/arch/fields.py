"""Numbers from a model's metadata, checked in one place: whole, finite, of a sign that makes sense."""

import math

import numpy as np

from ggrun.gguf import GGUFError, Outline

MOST = (1 << 31) - 1


def whole(model: Outline, name: str, default: int | None = None, least: int = 1, most: int = MOST) -> int:
    """The value of <architecture>.<name>; GGUFError when it is no whole number from least to most."""
    key = f"{model.architecture}.{name}"
    return _plausible(model, key, model.int_(key, default), least, most)


def per_layer(model: Outline, name: str, layers: int, default: int | None = None, least: int = 1) -> int:
    """The same for what may be an array with a number a layer, which must all be equal."""
    key = f"{model.architecture}.{name}"
    value = model.get(key)
    if not isinstance(value, np.ndarray):
        return whole(model, name, default, least)
    if value.dtype.kind not in "iu" or len(value) != layers:
        raise GGUFError(f"{model.path}: {key} is not a whole number for each of the {layers} layers")
    if (value != value[0]).any():
        raise GGUFError(f"{model.path}: {key} differs from layer to layer, which this ggrun does not run")
    return _plausible(model, key, int(value[0]), least)


def number(model: Outline, name: str, default: float | None = None, positive: bool = False) -> float:
    """<architecture>.<name>; GGUFError when it is infinite, no number or negative.

    With `positive` it may not be 0 either.
    """
    key = f"{model.architecture}.{name}"
    value = model.float_(key, default)
    if key in model.metadata and not (0.0 < value < math.inf or (value == 0.0 and not positive)):
        least = "more than 0" if positive else "0 or more"
        raise GGUFError(f"{model.path}: {key} is {value}: it must be a finite number, {least}")
    return value


def _plausible(model: Outline, key: str, value: int, least: int, most: int = MOST) -> int:
    if not least <= value <= most:
        raise GGUFError(f"{model.path}: {key} is {value}")
    return value
