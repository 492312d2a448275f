"""Signed weights for dot products that want unsigned ones: bytes + 128, and a minimum that takes it back."""

from typing import Any

from ..llvm_ir import SIGNED, TAKES_SIGNED
from ..runtime import jit
from ..simd import splat


def unsigned_blocks(unpack: Any, scale: Any, kind: Any, largest: int) -> tuple[Any, Any]:
    """unpack and scale -> (d, m) of blocks whose bytes may be SIGNED, for a reader of unsigned bytes."""
    if largest != SIGNED:
        return unpack, scale

    @jit
    def unpack_unsigned(p: int) -> object:
        return unpack(p) ^ 0x80808080

    return unpack_unsigned, _with_minimum(scale, kind)


def unsigned_superblocks(unpack: Any, scale: Any, kind: Any, largest: int) -> tuple[Any, Any]:
    """The same for superblocks, which are unpacked to four vectors."""
    if largest != SIGNED:
        return unpack, scale

    @jit
    def unpack_unsigned(p: int) -> tuple[object, object, object, object]:
        q_0, q_1, q_2, q_3 = unpack(p)
        return q_0 ^ 0x80808080, q_1 ^ 0x80808080, q_2 ^ 0x80808080, q_3 ^ 0x80808080

    return unpack_unsigned, _with_minimum(scale, kind)


def for_dots(unsigned: Any, unpack: Any, scale: Any, kind: Any, largest: int) -> tuple[Any, Any, int, bool]:
    """(unpack, scale -> (d, m), largest, whether there are minima) as this CPU's dot products take them.

    unsigned: one of the functions above.
    """
    if largest != SIGNED:
        return unpack, scale, largest, True
    if not TAKES_SIGNED:
        return *unsigned(unpack, scale, kind, largest), 255, True

    @jit
    def scale_alone(p: int) -> tuple[object, object]:
        d = scale(p)
        return d, d

    return unpack, scale_alone, SIGNED, False


def _with_minimum(scale: Any, kind: Any) -> Any:
    @jit
    def scale_and_minimum(p: int) -> tuple[object, object]:
        d = scale(p)
        return d, d * splat(kind, 128.0)

    return scale_and_minimum
