"""What the bytes stand for that a format is unpacked to, and how the CPU's dot products take them."""

from dataclasses import dataclass, replace
from typing import Any

from ..llvm_ir import SIGNED, TAKES_SIGNED
from ..runtime import jit


@dataclass(frozen=True)
class Values:
    """A value is d * (byte - offset) - m, with a scale d and perhaps a minimum m of its sub-block.

    largest   the largest byte; or SIGNED: from -127 to 127
    minima    whether there are: `scale` gives (d, m), else d alone
    """

    largest: int
    offset: int = 0
    minima: bool = False


def for_dots(values: Values, unpack: Any) -> tuple[Values, Any]:
    """The same values in bytes that dot products take; unpack(p) -> four vectors of bytes."""
    if values.largest != SIGNED or TAKES_SIGNED:
        return values, unpack

    @jit
    def unpack_unsigned(p: int) -> tuple[object, object, object, object]:
        q_0, q_1, q_2, q_3 = unpack(p)
        return q_0 ^ 0x80808080, q_1 ^ 0x80808080, q_2 ^ 0x80808080, q_3 ^ 0x80808080

    return replace(values, largest=255, offset=values.offset + 128), unpack_unsigned


def scale_and_minimum(values: Values, scale: Any) -> Any:
    """scale(p) -> (d, m), where the m of a format without minima is not to be used."""
    if values.minima:
        return scale

    @jit
    def scale_alone(p: int) -> tuple[object, object]:
        d = scale(p)
        return d, d

    return scale_alone
