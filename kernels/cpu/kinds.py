"""Kinds of vectors as Numba types, constants that shape the code, and how an intrinsic is written.

A `Kind` names what lies in memory and what a register holds: f32x16 is 16 floats. Kinds of one lane are
scalars. The half floats are storage only: a register has them as f32.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.imputils import lower_constant
from numba.extending import intrinsic as numba_intrinsic
from numba.extending import models, register_model, typeof_impl

from .llvm_ir import F32, F64, I8, I16, I32, I64, Value

Codegen = tuple[Any, Callable[..., Value]]

_STORED = {"u8": I8, "i8": I8, "i16": I16, "u16": I16, "i32": I32, "u32": I32, "i64": I64}
_STORED |= {"f32": F32, "f64": F64, "f16": I16, "bf16": I16}
_SCALAR = {"u8": types.uint8, "i8": types.int8, "i16": types.int16, "u16": types.uint16, "i32": types.int32}
_SCALAR |= {"u32": types.uint32, "i64": types.int64, "f64": types.float64}


def intrinsic(function: Callable[..., Codegen | None]) -> Any:
    """Numba's intrinsic: a function of (typing context, types) to a signature and what writes its code."""
    return numba_intrinsic(function)


class Vec(types.Type):
    """A register of n lanes; elem is "f32", "i32" or "i8"."""

    def __init__(self, elem: str, n: int) -> None:
        self.elem, self.n = elem, n
        self.ir = ir.VectorType(_STORED[elem], n)
        super().__init__(name=f"Vec({elem}x{n})")


@register_model(Vec)
class _VecModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Vec) -> None:
        super().__init__(dmm, fe_type, fe_type.ir)


class Kind:
    """What lies in memory: n elements of a machine type; usable inside kernels as a constant."""

    def __init__(self, elem: str, n: int = 1) -> None:
        self.elem, self.n = elem, n
        self.stored = ir.VectorType(_STORED[elem], n) if n > 1 else _STORED[elem]
        widened = "f32" if elem in ("f16", "bf16") else elem
        self.register = (
            Vec({"u8": "i8"}.get(widened, widened), n) if n > 1 else _SCALAR.get(widened, types.float32)
        )


class _Static(types.Dummy):
    """The Numba type of a compile-time constant: its `value` shapes the code of an intrinsic."""

    def __init__(self, value: Any, name: str) -> None:
        self.value = value
        super().__init__(name)


class Lanes(tuple[int, ...]):
    """Constant numbers, one a lane: those that a shuffle picks, or their own sake."""


STATIC: list[type] = []
"""The classes of compile-time constants."""


def static(cls: type, name: Callable[[Any], str]) -> None:
    """Let kernels use objects of a class as compile-time constants; equal names mean equal constants."""
    STATIC.append(cls)
    typeof_impl.register(cls)(lambda value, _: _Static(value, f"{cls.__name__}({name(value)})"))


static(Kind, lambda kind: f"{kind.elem}x{kind.n}")
static(Lanes, lambda lanes: str(tuple(lanes)))
register_model(_Static)(models.OpaqueModel)
lower_constant(_Static)(lambda context, builder, ty, value: context.get_dummy_value())
