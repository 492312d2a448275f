"""Short words for writing LLVM IR, and the choice of instructions: what simd.py is made of.

`b` is always llvmlite's IRBuilder.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir

Value = Any  # an LLVM value; llvmlite has no types of its own for mypy

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
F16, F32, F64 = ir.HalfType(), ir.FloatType(), ir.DoubleType()

# What each choice needs of the CPU; the best first.
_NEEDS = {
    "avx512": {"avx512f", "avx512bw", "avx512vl", "avx512vnni"},
    "avx2": {"avx2", "fma", "f16c"},
    "portable": set[str](),
}
ISAS = tuple(_NEEDS)


def _choose_isa() -> str:
    """The best that the CPU has, or GGRUN_SIMD; ValueError when that makes no sense here."""
    features = {name for name, on in llvm.get_host_cpu_features().items() if on}
    best = next(isa for isa in ISAS if _NEEDS[isa] <= features)
    wanted = os.environ.get("GGRUN_SIMD") or best
    if wanted not in ISAS:
        raise ValueError(f"GGRUN_SIMD={wanted}: it must be one of {', '.join(ISAS)}")
    if missing := sorted(_NEEDS[wanted] - features):
        raise ValueError(f"GGRUN_SIMD={wanted}: this CPU has no {', '.join(missing)}; its best is {best}")
    return wanted


ISA = _choose_isa()
TAKES_SIGNED = ISA != "avx512"
"""Whether dot products take signed weights; VNNI wants unsigned ones, and + 128 makes them that."""


def like(ty: Any, elem: Any) -> Any:
    """The type of `ty`'s shape (vector or scalar) with another element type."""
    return ir.VectorType(elem, ty.count) if isinstance(ty, ir.VectorType) else elem


def const(ty: Any, value: Any) -> Value:
    """A constant, in every lane where ty is a vector."""
    return ir.Constant(ty, [value] * ty.count if isinstance(ty, ir.VectorType) else value)


def undef(ty: Any) -> Value:
    """A value that will be overwritten."""
    return ir.Constant(ty, ir.Undefined)


def packed(b: Any, values: Sequence[Value]) -> Value:
    """Values of one type as a tuple."""
    out = undef(ir.ArrayType(values[0].type, len(values)))
    for i, value in enumerate(values):
        out = b.insert_value(out, value, i)
    return out


def pick(b: Any, x: Value, y: Value, lanes: Sequence[int]) -> Value:
    """The LLVM shufflevector with constant lanes."""
    return b.shuffle_vector(x, y, ir.Constant(ir.VectorType(I32, len(lanes)), list(lanes)))


def broadcast(b: Any, x: Value, n: int) -> Value:
    """A scalar in n lanes."""
    vec = ir.VectorType(x.type, n)
    return pick(b, b.insert_element(undef(vec), x, const(I32, 0)), undef(vec), [0] * n)


def halves(b: Any, x: Value) -> tuple[Value, Value]:
    """The low and the high half of a vector."""
    n = x.type.count
    return pick(b, x, undef(x.type), range(n // 2)), pick(b, x, undef(x.type), range(n // 2, n))


def call(b: Any, name: str, result: Any, args: Sequence[Value]) -> Value:
    """Call an external function or an LLVM intrinsic."""
    fnty = ir.FunctionType(result, [a.type for a in args])
    fn = b.module.globals.get(name) or ir.Function(b.module, fnty, name)
    return b.call(fn, args)


def overloaded(b: Any, name: str, args: Sequence[Value]) -> Value:
    """Call an LLVM intrinsic that is mangled by, and returns, the type of its first argument."""
    ty = args[0].type
    words = {"float": "f32", "double": "f64"}
    scalar = ty.element if isinstance(ty, ir.VectorType) else ty
    elem = words.get(str(scalar), str(scalar))
    if isinstance(ty, ir.VectorType):
        elem = f"v{ty.count}{elem}"
    return call(b, f"llvm.{name}.{elem}", ty, args)


def pointer(b: Any, address: Value) -> Value:
    """An address as a pointer."""
    return b.inttoptr(address, ir.PointerType())


def widen(b: Any, bits: Value, elem: str) -> Value:
    """Half floats, given as i16, to f32."""
    words = b.zext(bits, like(bits.type, I32))
    if elem == "bf16":
        return b.bitcast(b.shl(words, const(words.type, 16)), like(bits.type, F32))
    if ISA != "portable":
        return b.fpext(b.bitcast(bits, like(bits.type, F16)), like(bits.type, F32))
    # Without conversion instructions LLVM would call compiler-rt, which the JIT does not have. Shift
    # exponent and
    # mantissa into place and scale by 2^112: exact for normal and subnormal numbers; infinities stay
    # infinite.
    sign = b.shl(b.and_(words, const(words.type, 0x8000)), const(words.type, 16))
    magnitude = b.shl(b.and_(words, const(words.type, 0x7FFF)), const(words.type, 13))
    scaled = b.bitcast(magnitude, like(bits.type, F32))
    scaled = b.bitcast(b.fmul(scaled, const(scaled.type, 2.0**112)), words.type)
    special = b.icmp_unsigned(">=", magnitude, const(words.type, 0x0F800000))
    scaled = b.select(special, b.or_(magnitude, const(words.type, 0x7F800000)), scaled)
    return b.bitcast(b.or_(scaled, sign), like(bits.type, F32))


def narrow(b: Any, x: Value, elem: str) -> Value:
    """f32 to half floats as i16, rounded to nearest even (not a number stays none)."""
    if elem == "f16" and ISA != "portable":
        return b.bitcast(b.fptrunc(x, like(x.type, F16)), like(x.type, I16))
    word = like(x.type, I32)
    bits, none = b.bitcast(x, word), b.fcmp_unordered("uno", x, x)
    if elem == "bf16":
        odd = b.and_(b.lshr(bits, const(word, 16)), const(word, 1))
        half = b.lshr(b.add(bits, b.add(odd, const(word, 0x7FFF))), const(word, 16))
        return b.trunc(b.select(none, const(word, 0x7FC0), half), like(x.type, I16))
    sign = b.and_(b.lshr(bits, const(word, 16)), const(word, 0x8000))
    size = b.and_(bits, const(word, 0x7FFFFFFF))
    # Subnormal halves: adding 0.5 moves the wanted bits to the end of the mantissa, and the adder rounds
    # them.
    tiny = b.fadd(b.bitcast(size, x.type), const(x.type, 0.5))
    tiny = b.sub(b.bitcast(tiny, word), const(word, 0x3F000000))
    odd = b.and_(b.lshr(size, const(word, 13)), const(word, 1))
    normal = b.lshr(b.add(b.add(size, odd), const(word, 0xFFF - (112 << 23))), const(word, 13))
    half = b.select(b.icmp_unsigned("<", size, const(word, 113 << 23)), tiny, normal)
    half = b.select(b.icmp_unsigned(">=", size, const(word, 143 << 23)), const(word, 0x7C00), half)
    half = b.select(none, const(word, 0x7E00), half)
    return b.trunc(b.or_(half, sign), like(x.type, I16))


def reduced(b: Any, x: Value, step: Callable[[Value, Value], Value]) -> Value:
    """Fold the lanes of a vector pairwise."""
    while x.type.count > 2:
        x = step(*halves(b, x))
    return step(b.extract_element(x, const(I32, 0)), b.extract_element(x, const(I32, 1)))


def joined(b: Any, x: Value, y: Value) -> Value:
    """x's lanes, then y's."""
    return pick(b, x, y, range(2 * x.type.count))


def across(b: Any, rows: Sequence[Value]) -> list[Value]:
    """Four vectors, transposed in each four lanes: out j has lane j of the fours of row 0, of row 1...

    By shuffles that stay in a register's quarters: one instruction each.
    """
    n = rows[0].type.count
    quarters = range(0, n, 4)

    def interleaved(x: Value, y: Value, lanes: Sequence[int], width: int) -> Value:
        return pick(b, x, y, [q + i + j for q in quarters for i in lanes for j in range(width)])

    # Pairs of lanes, then pairs of pairs.
    low = [interleaved(rows[i], rows[i + 1], (0, n, 1, n + 1), 1) for i in (0, 2)]
    high = [interleaved(rows[i], rows[i + 1], (2, n + 2, 3, n + 3), 1) for i in (0, 2)]
    return [interleaved(x, y, (first, n + first), 2) for x, y in (low, high) for first in (0, 2)]


def in_halves(b: Any, f: Callable[..., Value], *vectors: Value) -> Value:
    """Apply f to the low and to the high halves of some vectors, and join what comes out."""
    low, high = zip(*(halves(b, v) for v in vectors), strict=True)
    return joined(b, f(*low), f(*high))


def signed_low(b: Any, x: Value, bits: int) -> Value:
    """The low bits of each lane, sign-extended in place."""
    shift = const(x.type, bits)
    return b.ashr(b.shl(x, shift), shift)


SIGNED = 0
"""In the place of the largest byte of some weights: they are signed."""


def dot4(b: Any, largest: int, acc: Value, w: Value, x: Value) -> Value:
    """acc (i32) += the sum of four neighbouring products of the bytes of w and x (in i32 lanes).

    w: unsigned bytes up to `largest`, which is 127 at most (with AVX-512 255); or signed ones, where the ISA
    has TAKES_SIGNED. x: signed bytes in [-127, 127].
    """
    if ISA != "avx512":
        return b.add(acc, pair_sums(b, products(b, largest, w, x)))
    if largest == SIGNED:
        raise ValueError("AVX-512 multiplies unsigned bytes with signed ones")
    n = acc.type.count
    bytes_ = [b.bitcast(v, ir.VectorType(I8, 4 * n)) for v in (w, x)]
    return call(b, f"llvm.x86.avx512.vpdpbusd.{32 * n}", acc.type, [acc, *bytes_])


def dots(b: Any, largest: int, acc: Value, pairs: Sequence[tuple[Value, Value]]) -> Value:
    """acc + the dot4 of several pairs of w and x."""
    if ISA == "avx512" or room(largest) < len(pairs):
        for w, x in pairs:
            acc = dot4(b, largest, acc, w, x)
        return acc
    words = products(b, largest, *pairs[0])
    for w, x in pairs[1:]:
        words = b.add(words, products(b, largest, w, x))
    return b.add(acc, pair_sums(b, words))


def room(largest: int) -> int:
    """How many `products` an i16 can sum up."""
    return 32767 // (2 * 127 * (largest or 128))


def products(b: Any, largest: int, w: Value, x: Value) -> Value:
    """Sums of two neighbouring products, as i16; see dot4."""
    if not room(largest):
        raise ValueError(f"products of bytes up to {largest} do not fit")
    n = w.type.count
    if ISA == "avx2" and n == 16:
        return in_halves(b, lambda *v: products(b, largest, *v), w, x)
    bytes_, words = ir.VectorType(I8, 4 * n), ir.VectorType(I16, 2 * n)
    if ISA == "avx2" and n == 8:
        w, x = b.bitcast(w, bytes_), b.bitcast(x, bytes_)
        if largest == SIGNED:
            x = call(b, "llvm.x86.avx2.psign.b", bytes_, [x, w])
            w = call(b, f"llvm.abs.v{4 * n}i8", bytes_, [w, const(ir.IntType(1), 0)])
        return call(b, "llvm.x86.avx2.pmadd.ub.sw", words, [w, x])
    w, x = b.bitcast(w, words), b.bitcast(x, words)
    if largest == SIGNED:
        low, high = signed_low(b, w, 8), b.ashr(w, const(words, 8))
    else:
        low, high = b.and_(w, const(words, 255)), b.lshr(w, const(words, 8))
    return b.add(b.mul(low, signed_low(b, x, 8)), b.mul(high, b.ashr(x, const(words, 8))))


def pair_sums(b: Any, words: Value) -> Value:
    """Sums of neighbouring i16 lanes, as i32."""
    ty = ir.VectorType(I32, words.type.count // 2)
    if ISA == "avx2" and ty.count == 16:
        return in_halves(b, lambda half: pair_sums(b, half), words)
    if ISA == "avx2" and ty.count == 8:
        return call(b, "llvm.x86.avx2.pmadd.wd", ty, [words, const(words.type, 1)])
    x = b.bitcast(words, ty)
    return b.add(signed_low(b, x, 16), b.ashr(x, const(ty, 16)))


def opaque(b: Any, n: Value) -> Value:
    """A number that LLVM does not know: it leaves a loop of so many rounds as it is.

    Unrolled, it would reorder the rounds for one accumulator after the other, and spill all that they share.
    """
    return b.asm(ir.FunctionType(I64, [I64]), "", "=r,0", [n], False)


def lookup(b: Any, table: Value, index: Value) -> Value:
    """Bytes of a table of 16, picked by every byte of `index` (each 15 or less, in i32 lanes)."""
    n = index.type.count
    if ISA == "avx2" and n == 16:
        return in_halves(b, lambda i: lookup(b, table, i), index)
    bytes_ = ir.VectorType(I8, 4 * n)
    i = b.bitcast(index, bytes_)
    if ISA != "portable" and n >= 8:
        name = "llvm.x86.avx512.pshuf.b.512" if n == 16 else "llvm.x86.avx2.pshuf.b"
        tables = pick(b, table, undef(table.type), list(range(16)) * (n // 4))
        return b.bitcast(call(b, name, bytes_, [tables, i]), index.type)
    out = undef(bytes_)
    for lane in range(4 * n):
        entry = b.extract_element(table, b.zext(b.extract_element(i, const(I32, lane)), I32))
        out = b.insert_element(out, entry, const(I32, lane))
    return b.bitcast(out, index.type)
