"""The SIMD vocabulary: vectors as opaque Numba types, and intrinsics that write LLVM IR.

A `Kind` names what lies in memory and what a register holds: `load(f32x16, p)` gives 16 floats. Kinds of one
lane are scalars (`load(i64, p)` is a Numba integer). The half floats are storage only: loading widens them to
f32, storing narrows. Addresses are plain integers. Vectors take + - * & | ^ << >> (a logical shift).

Which instructions an intrinsic becomes is decided once, at import: see llvm_ir.ISA.
"""

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import AbstractTemplate, infer_global, signature

from . import llvm_ir
from .kinds import Codegen, Kind, Vec, intrinsic, static
from .llvm_ir import (
    F32,
    I32,
    I64,
    ISA,
    Value,
    broadcast,
    call,
    const,
    joined,
    like,
    narrow,
    overloaded,
    packed,
    pick,
    pointer,
    reduced,
    undef,
    widen,
)

f32, f16, bf16, i64, i32, u32, u16, i16, u8, i8 = map(
    Kind, ["f32", "f16", "bf16", "i64", "i32", "u32", "u16", "i16", "u8", "i8"]
)
f32x16, f32x8, i32x16, i32x8, i32x4 = (
    Kind("f32", 16),
    Kind("f32", 8),
    Kind("i32", 16),
    Kind("i32", 8),
    Kind("i32", 4),
)
f16x16, bf16x16, f16x8 = Kind("f16", 16), Kind("bf16", 16), Kind("f16", 8)
i8x16, i8x8, i8x64 = Kind("i8", 16), Kind("i8", 8), Kind("i8", 64)

# ---------------------------------------------------------------- memory


@intrinsic
def load(ctx: Any, kind: Any, address: Any) -> Codegen:
    """What lies at an address, unaligned; half floats become f32."""
    k = kind.value

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Value:
        raw = b.load(pointer(b, args[1]), typ=k.stored, align=1)
        return widen(b, raw, k.elem) if k.elem in ("f16", "bf16") else raw

    return k.register(kind, types.intp), codegen


@intrinsic
def store(ctx: Any, kind: Any, value: Any, address: Any) -> Codegen:
    """Write a value in the kind's form: wider integers are truncated, floats narrowed to halves."""
    k = kind.value
    taken = (
        value
        if isinstance(value, Vec)
        else types.float32
        if k.elem in ("f32", "f16", "bf16")
        else types.int64
    )

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Value:
        x = args[1]
        if k.elem in ("f16", "bf16"):
            x = narrow(b, x, k.elem)
        elif x.type != k.stored:
            x = b.trunc(x, k.stored)
        b.store(x, pointer(b, args[2]), align=1)
        return context.get_dummy_value()

    return types.void(kind, taken, types.intp), codegen


@intrinsic
def gather(ctx: Any, kind: Any, address: Any, stride: Any) -> Codegen:
    """What lies at an address, as many bytes or half floats as the kind has, `stride` bytes apart."""
    k = kind.value

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Value:
        stored = k.stored.element
        a_word = 64 // stored.width
        words = undef(ir.VectorType(I64, k.stored.count // a_word))
        # Put together by integer instructions: vectors' own for it keep the shuffles busy, which are few.
        for i in range(words.type.count):
            word = const(I64, 0)
            for j in range(a_word):
                at = b.add(args[1], b.mul(args[2], const(I64, i * a_word + j)))
                one = b.zext(b.load(pointer(b, at), typ=stored, align=1), I64)
                word = b.or_(word, b.shl(one, const(I64, j * stored.width)))
            words = b.insert_element(words, word, const(I32, i))
        raw = b.bitcast(words, k.stored)
        return widen(b, raw, k.elem) if k.elem in ("f16", "bf16") else raw

    return k.register(kind, types.intp, types.intp), codegen


@intrinsic
def prefetch(ctx: Any, address: Any) -> Codegen:
    """Ask for the cache line of an address (any address: it need not be mapped)."""
    return types.void(types.intp), _prefetch(3)


@intrinsic
def prefetch_later(ctx: Any, address: Any) -> Codegen:
    """The same for what is used later: not into the L1 cache."""
    return types.void(types.intp), _prefetch(2)


def _prefetch(locality: int) -> Callable[..., Value]:
    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Value:
        hint = [const(I32, v) for v in (0, locality, 1)]  # read, how near, data
        call(b, "llvm.prefetch.p0", ir.VoidType(), [pointer(b, args[0]), *hint])
        return context.get_dummy_value()

    return codegen


@intrinsic
def address_of(ctx: Any, array: Any) -> Codegen:
    """The address of a NumPy array's first element (of a global one: in the machine code)."""

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Value:
        return b.ptrtoint(context.make_array(sig.args[0])(context, b, args[0]).data, I64)

    return types.intp(array), codegen


# ---------------------------------------------------------------- arithmetic


def _operator(op: Any, integer: str, floating: str | None) -> None:
    class Typing(AbstractTemplate):
        def generic(self, args: Any, kws: Any) -> Any:
            if len(args) == 2 and isinstance(args[0], Vec):
                a, c = args
                if a == c and (floating or a.elem != "f32"):
                    return signature(a, a, a)
                if isinstance(c, types.Integer) and a.elem != "f32":
                    return signature(a, a, types.int64)
            return None

    infer_global(op)(Typing)

    def vectors(context: Any, b: Any, sig: Any, args: Any) -> Value:
        name = floating if floating and sig.args[0].elem == "f32" else integer
        return getattr(b, name)(*args)

    def with_scalar(context: Any, b: Any, sig: Any, args: Any) -> Value:
        lane = b.trunc(args[1], sig.args[0].ir.element)
        return getattr(b, integer)(args[0], broadcast(b, lane, sig.args[0].n))

    lower_builtin(op, Vec, Vec)(vectors)
    lower_builtin(op, Vec, types.Integer)(with_scalar)


for _op, _int, _float in (
    (operator.add, "add", "fadd"),
    (operator.sub, "sub", "fsub"),
    (operator.mul, "mul", "fmul"),
    (operator.and_, "and_", None),
    (operator.or_, "or_", None),
    (operator.xor, "xor", None),
    (operator.lshift, "shl", None),
    (operator.rshift, "lshr", None),
):
    _operator(_op, _int, _float)


def _unary(name: str, write: Callable[[Any, Value], Value], result: Callable[[Vec], Any], doc: str) -> Any:
    def f(ctx: Any, x: Any) -> Codegen:
        return result(x)(x), lambda context, b, sig, args: write(b, args[0])

    # Helpers that close over it are named by it (see runtime.jit).
    f.__name__ = f.__qualname__ = name
    f.__doc__ = doc
    return intrinsic(f)


def _sum(b: Any, x: Value) -> Value:
    return reduced(b, x, b.fadd if x.type.element == F32 else b.add)


def _largest(b: Any, x: Value) -> Value:
    name = "maxnum" if x.type.element == F32 else "smax"
    return reduced(b, x, lambda lo, hi: overloaded(b, name, [lo, hi]))


def _same(x: Vec) -> Vec:
    return x


def _scalar(x: Vec) -> Any:
    return types.float32 if x.elem == "f32" else types.int32


def _floats(x: Vec) -> Vec:
    return Vec("f32", x.n)


def _integers(x: Vec) -> Vec:
    return Vec("i32", x.n)


negated = _unary("negated", lambda b, x: b.fneg(x), _same, "-x.")
rounded = _unary(
    "rounded", lambda b, x: overloaded(b, "rint", [x]), _same, "To the nearest integer, halves to even."
)
hsum = _unary("hsum", _sum, _scalar, "The sum of all lanes, added pairwise.")
hmax = _unary("hmax", _largest, _scalar, "The largest lane.")
to_f32 = _unary("to_f32", lambda b, x: b.sitofp(x, like(x.type, F32)), _floats, "i32 to f32.")
to_i32 = _unary("to_i32", lambda b, x: b.fptosi(x, like(x.type, I32)), _integers, "f32 to i32, truncated.")
zext = _unary("zext", lambda b, x: b.zext(x, like(x.type, I32)), _integers, "Unsigned bytes to i32.")
sext = _unary("sext", lambda b, x: b.sext(x, like(x.type, I32)), _integers, "Signed bytes to i32.")


@intrinsic
def splat(ctx: Any, kind: Any, x: Any) -> Codegen:
    """A scalar in every lane."""
    vec = kind.value.register
    scalar = types.float32 if vec.elem == "f32" else types.int32

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Value:
        return broadcast(b, args[1], vec.n)

    return vec(kind, scalar), codegen


@intrinsic
def unknown(ctx: Any, n: Any) -> Codegen:
    """A whole number that LLVM does not know: it leaves a loop of so many rounds one."""
    return types.intp(types.intp), lambda context, b, sig, args: llvm_ir.opaque(b, args[0])


@intrinsic
def numbers(ctx: Any, kind: Any, lanes: Any) -> Codegen:
    """Constant lanes."""
    vec = kind.value.register
    return vec(kind, lanes), lambda context, b, sig, args: ir.Constant(vec.ir, list(lanes.value))


@intrinsic
def zero(ctx: Any, kind: Any) -> Codegen:
    """Zero in every lane."""
    vec = kind.value.register
    return vec(kind), lambda context, b, sig, args: ir.Constant(vec.ir, None)


@intrinsic
def fma(ctx: Any, x: Any, y: Any, z: Any) -> Codegen:
    """x * y + z, rounded once where the CPU can."""
    # Without the instruction llvm.fma is a library call a lane; fmuladd may be two roundings, and is fast.
    name = "fmuladd" if ISA == "portable" else "fma"
    return x(x, x, x), lambda context, b, sig, args: overloaded(b, name, args)


@intrinsic
def maximum(ctx: Any, x: Any, y: Any) -> Codegen:
    """The larger of two floats or signed integers, lane by lane."""
    name = "maxnum" if x.elem == "f32" else "smax"
    return x(x, x), lambda context, b, sig, args: overloaded(b, name, args)


@intrinsic
def minimum(ctx: Any, x: Any, y: Any) -> Codegen:
    """The smaller of two floats, lane by lane."""
    return x(x, x), lambda context, b, sig, args: overloaded(b, "minnum", args)


@intrinsic
def where_less(ctx: Any, x: Any, y: Any, then: Any, other: Any) -> Codegen:
    """Lanes of `then` where the float x < y; of `other` elsewhere, also where one is no number."""

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Value:
        return b.select(b.fcmp_ordered("<", args[0], args[1]), args[2], args[3])

    return then(x, x, then, then), codegen


@intrinsic
def divide(ctx: Any, x: Any, y: Any) -> Codegen:
    """x / y, lane by lane (/ itself is Numba's, with its checks)."""
    return x(x, y), lambda context, b, sig, args: b.fdiv(*args)


@intrinsic
def bitcast(ctx: Any, kind: Any, x: Any) -> Codegen:
    """The same bits as another kind: a u64 as i8x8, f32 lanes as i32..."""
    return kind.value.register(kind, x), lambda context, b, sig, args: b.bitcast(
        args[1], kind.value.register.ir
    )


@intrinsic
def shuffle(ctx: Any, x: Any, lanes: Any) -> Codegen:
    """x's lanes in the order of a constant Lanes."""
    out = Vec(x.elem, len(lanes.value))
    return out(x, lanes), lambda context, b, sig, args: pick(b, args[0], undef(x.ir), lanes.value)


@intrinsic
def join(ctx: Any, low: Any, high: Any) -> Codegen:
    """Two vectors as one of twice the lanes."""
    return Vec(low.elem, 2 * low.n)(low, low), lambda context, b, sig, args: joined(b, *args)


@intrinsic
def quads_across(ctx: Any, x: Any, y: Any, z: Any, w: Any) -> Codegen:
    """Four vectors, transposed in each four lanes; see llvm_ir.across."""

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Value:
        return packed(b, llvm_ir.across(b, args))

    return types.UniTuple(x, 4)(x, x, x, x), codegen


class Largest:
    """The largest byte of some weights, or SIGNED; see llvm_ir.dots."""

    def __init__(self, byte: int) -> None:
        self.byte = byte


static(Largest, lambda largest: str(largest.byte))


@intrinsic
def dots(ctx: Any, largest: Any, acc: Any, w: Any, x: Any, stride: Any) -> Codegen:
    """acc += sums of four neighbouring products of each of a tuple w and what is at x, x + stride...

    w: bytes up to a constant Largest, x: signed ones.
    """

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Value:
        _, acc, w, x, stride = args
        pairs = []
        for i in range(len(sig.args[2])):
            at = b.add(x, b.mul(stride, const(I64, i)))
            pairs.append((b.extract_value(w, i), b.load(pointer(b, at), typ=acc.type, align=1)))
        return llvm_ir.dots(b, largest.value.byte, acc, pairs)

    return acc(largest, acc, w, x, types.intp), codegen


@intrinsic
def lookup(ctx: Any, table: Any, index: Any) -> Codegen:
    """Bytes of an i8x16 table, picked by every byte (15 or less) of an i32 vector."""
    return index(table, index), lambda context, b, sig, args: llvm_ir.lookup(b, *args)
