"""What a GGUF file is made of: the formats of its tensors and the types of its metadata values."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_DIMS = 4
DEFAULT_ALIGNMENT = 32

Value = bool | int | float | str | list[str] | NDArray[Any]
"""A metadata value: a scalar, a list of strings, or a 1-D numpy array of numbers or of bools."""


@dataclass(frozen=True, slots=True)
class Format:
    """How a tensor's numbers are stored: blocks of `block` elements, each block `size` bytes."""

    name: str
    id: int
    block: int
    size: int

    def nbytes(self, n_elements: int) -> int:
        """Return the bytes of `n_elements` in a row; ValueError when they are not whole blocks."""
        blocks, rest = divmod(n_elements, self.block)
        if rest:
            raise ValueError(
                f"a row of {n_elements} elements, which is no multiple of {self.name}'s {self.block}"
            )
        return blocks * self.size


_TABLE = (
    Format("F32", 0, 1, 4),
    Format("F16", 1, 1, 2),
    Format("Q4_0", 2, 32, 18),
    Format("Q4_1", 3, 32, 20),
    Format("Q5_0", 6, 32, 22),
    Format("Q5_1", 7, 32, 24),
    Format("Q8_0", 8, 32, 34),
    Format("Q8_1", 9, 32, 40),
    Format("Q2_K", 10, 256, 84),
    Format("Q3_K", 11, 256, 110),
    Format("Q4_K", 12, 256, 144),
    Format("Q5_K", 13, 256, 176),
    Format("Q6_K", 14, 256, 210),
    Format("Q8_K", 15, 256, 292),
    Format("IQ2_XXS", 16, 256, 66),
    Format("IQ2_XS", 17, 256, 74),
    Format("IQ3_XXS", 18, 256, 98),
    Format("IQ1_S", 19, 256, 50),
    Format("IQ4_NL", 20, 32, 18),
    Format("IQ3_S", 21, 256, 110),
    Format("IQ2_S", 22, 256, 82),
    Format("IQ4_XS", 23, 256, 136),
    Format("I8", 24, 1, 1),
    Format("I16", 25, 1, 2),
    Format("I32", 26, 1, 4),
    Format("I64", 27, 1, 8),
    Format("F64", 28, 1, 8),
    Format("IQ1_M", 29, 256, 56),
    Format("BF16", 30, 1, 2),
    Format("TQ1_0", 34, 256, 54),
    Format("TQ2_0", 35, 256, 66),
    Format("MXFP4", 39, 32, 17),
    Format("NVFP4", 40, 64, 36),
    Format("Q1_0", 41, 128, 18),
)

FORMATS: Mapping[str, Format] = MappingProxyType({f.name: f for f in _TABLE})
"""Every format that a GGUF file can hold, by its ggml name."""

FORMATS_BY_ID: Mapping[int, Format] = MappingProxyType({f.id: f for f in _TABLE})
"""The same by ggml_type number. The gaps (4, 5, 31-33, 36-38) are formats that ggml has removed."""


class ValueType(IntEnum):
    """The type of a metadata value, as the file writes it."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


DTYPES: Mapping[ValueType, np.dtype[Any]] = MappingProxyType(
    {
        ValueType.UINT8: np.dtype("<u1"),
        ValueType.INT8: np.dtype("<i1"),
        ValueType.UINT16: np.dtype("<u2"),
        ValueType.INT16: np.dtype("<i2"),
        ValueType.UINT32: np.dtype("<u4"),
        ValueType.INT32: np.dtype("<i4"),
        ValueType.FLOAT32: np.dtype("<f4"),
        ValueType.BOOL: np.dtype("?"),
        ValueType.UINT64: np.dtype("<u8"),
        ValueType.INT64: np.dtype("<i8"),
        ValueType.FLOAT64: np.dtype("<f8"),
    }
)
"""The numpy type of each value type of fixed size: all but STRING and ARRAY."""


def tensor_nbytes(shape: tuple[int, ...], format: Format) -> int:
    """Return the bytes of a tensor of this ggml shape; ValueError, in words, when no tensor can have it."""
    if not 1 <= len(shape) <= MAX_DIMS:
        raise ValueError(f"{len(shape)} dimensions, where 1 to {MAX_DIMS} are possible")
    if min(shape) < 1:
        raise ValueError(f"a dimension of {min(shape)} in its shape {list(shape)}")
    return format.nbytes(shape[0]) * math.prod(shape[1:])


def aligned(n: int, alignment: int) -> int:
    """Return `n` rounded up to a multiple of `alignment`."""
    return -(-n // alignment) * alignment


def checked_alignment(value: object) -> int:
    """Return a `general.alignment` that is usable; ValueError, in words, when it is not."""
    number = int(value) if isinstance(value, int | np.integer) and not isinstance(value, bool) else 0
    if number < 1 or number & (number - 1):
        raise ValueError(f"general.alignment must be a power of two, not {value!r:.80}")
    return number
