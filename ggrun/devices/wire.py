"""What values are while they travel between devices: float32, or bfloat16, which is half of it."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

DTYPES: dict[str, np.dtype[Any]] = {"f32": np.dtype(np.float32), "bf16": np.dtype(np.uint16)}
"""How the host holds the values of a place. numpy has no bfloat16: its bits are held."""

_NAN = 0x7FFF


def narrowed(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The nearest bfloat16 of each; of two, the even one, as cards round."""
    bits = values.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(values), np.uint16(_NAN), rounded.astype(np.uint16))


def widened(values: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The same numbers as float32."""
    return (values.astype(np.uint32) << 16).view(np.float32)
