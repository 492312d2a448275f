"""Products of parameters, of which a normal run makes some and `-m slow` the others."""

from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest


def diagonal(*axes: Sequence[Any]) -> list[Any]:
    """All combinations, as parameters of a test: slow are those beside the diagonal.

    So a normal run sees each value of each axis, and of the longest one each value once.
    """
    longest = max(range(len(axes)), key=lambda i: len(axes[i]))

    def kept(places: tuple[int, ...]) -> bool:
        return all(at == places[longest] % len(axis) for at, axis in zip(places, axes, strict=True))

    return [
        pytest.param(
            *(axis[at] for axis, at in zip(axes, places, strict=True)),
            marks=() if kept(places) else pytest.mark.slow,
        )
        for places in product(*(range(len(axis)) for axis in axes))
    ]
