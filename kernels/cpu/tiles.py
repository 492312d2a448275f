"""Tiles: accumulators of a matrix product that stay in registers.

A tile is the product of `groups` times 16 rows and `columns` columns: a tuple of vectors of 16 rows, column
by column. Weights lie in scratch memory as [4 values][row]: a lane is a row, and holds four bytes of it.
Every vector of weights meets `columns` broadcast quads of column bytes, and every broadcast meets `groups`
vectors; two or more of each are what keeps the dot products busy and not the loads.
"""

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types

from .llvm_ir import F32, I32, Value, broadcast, const, dot4, overloaded, pick, pointer, undef
from .simd import Codegen, Vec, intrinsic, static

LINE = 64  # bytes in a vector of 16 rows


class Shape:
    """How large a tile is, and whether its weights' bytes may be above 127."""

    def __init__(self, groups: int, columns: int, full: bool = False) -> None:
        self.groups, self.columns, self.full = groups, columns, full

    def tile(self, elem: str) -> Any:
        """The Numba type of its accumulators."""
        return types.UniTuple(Vec(elem, 16), self.groups * self.columns)

    def cells(self) -> list[tuple[int, int]]:
        """All (column, group), in the order of the tuple."""
        return [(c, g) for c in range(self.columns) for g in range(self.groups)]


static(Shape, lambda s: f"{s.groups},{s.columns},{s.full}")


def _build(b: Any, values: Sequence[Value]) -> Value:
    tile = undef(ir.ArrayType(values[0].type, len(values)))
    for i, value in enumerate(values):
        tile = b.insert_value(tile, value, i)
    return tile


def _offset(b: Any, address: Value, *terms: Any) -> Value:
    """address + terms; each a number or a pair (value, factor)."""
    for term in terms:
        value, factor = term if isinstance(term, tuple) else (None, term)
        step = const(address.type, factor)
        address = b.add(address, step if value is None else b.mul(value, step))
    return address


def _vector(b: Any, elem: Any, address: Value) -> Value:
    return b.load(pointer(b, address), typ=ir.VectorType(elem, 16), align=1)


def _splat(b: Any, elem: Any, address: Value) -> Value:
    return broadcast(b, b.load(pointer(b, address), typ=elem, align=1), 16)


@intrinsic
def tile_zero(ctx: Any, shape: Any, kind: Any) -> Codegen:
    """A tile of zeros."""
    s, vec = shape.value, kind.value.register

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Value:
        return _build(b, [ir.Constant(vec.ir, None)] * (s.groups * s.columns))

    return s.tile(vec.elem)(shape, kind), codegen


@intrinsic
def tile_dot(ctx: Any, shape: Any, acc: Any, w: Any, x: Any, x_stride: Any, quads: Any) -> Codegen:
    """acc += `quads` (a constant Quads) times four bytes of each row at w and each column at x."""
    s, steps = shape.value, quads.value.n

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Value:
        _, tile, w, x, stride, _ = args
        out = [b.extract_value(tile, i) for i in range(len(s.cells()))]
        for j in range(steps):
            weights = [_vector(b, I32, _offset(b, w, LINE * (j * s.groups + g))) for g in range(s.groups)]
            for c in range(s.columns):
                quad = _splat(b, I32, _offset(b, x, (stride, c), 4 * j))
                for g in range(s.groups):
                    i = c * s.groups + g
                    out[i] = dot4(b, s.full, out[i], weights[g], quad)
        return _build(b, out)

    return acc(shape, acc, types.intp, types.intp, types.intp, quads), codegen


class Quads:
    """How many times four bytes a tile_dot takes."""

    def __init__(self, n: int) -> None:
        self.n = n


static(Quads, lambda quads: str(quads.n))


@intrinsic
def tile_fma(ctx: Any, shape: Any, acc: Any, w: Any, x: Any, x_stride: Any) -> Codegen:
    """acc += a float of each row at w times one of each column at x, x + x_stride..."""
    s = shape.value

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Value:
        _, tile, w, x, stride = args
        rows = [_vector(b, F32, _offset(b, w, LINE * g)) for g in range(s.groups)]
        columns = [_splat(b, F32, _offset(b, x, (stride, c))) for c in range(s.columns)]
        out = [
            overloaded(b, "fmuladd", [rows[g], columns[c], b.extract_value(tile, i)])
            for i, (c, g) in enumerate(s.cells())
        ]
        return _build(b, out)

    return acc(shape, acc, types.intp, types.intp, types.intp), codegen


@intrinsic
def tile_store(ctx: Any, shape: Any, tile: Any, y: Any, stride: Any) -> Codegen:
    """The tile to the floats at y, columns `stride` bytes apart."""
    s = shape.value

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Value:
        _, tile, y, stride = args
        for i, (c, g) in enumerate(s.cells()):
            b.store(b.extract_value(tile, i), pointer(b, _offset(b, y, (stride, c), LINE * g)), align=1)
        return context.get_dummy_value()

    return types.void(shape, tile, types.intp, types.intp), codegen


@intrinsic
def tile_scale(ctx: Any, shape: Any, acc: Any, products: Any, d: Any, s: Any, stride: Any) -> Codegen:
    """acc += products * (the rows' scales at d * the columns' scales at s, s + stride...)."""
    sh = shape.value

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Value:
        _, tile, products, d, s, stride = args
        rows = [_vector(b, F32, _offset(b, d, LINE * g)) for g in range(sh.groups)]
        columns = [_splat(b, F32, _offset(b, s, (stride, c))) for c in range(sh.columns)]
        out = []
        for i, (c, g) in enumerate(sh.cells()):
            product = b.sitofp(b.extract_value(products, i), ir.VectorType(F32, 16))
            scale = b.fmul(rows[g], columns[c])
            out.append(overloaded(b, "fmuladd", [product, scale, b.extract_value(tile, i)]))
        return _build(b, out)

    return acc(shape, acc, products, types.intp, types.intp, types.intp), codegen


@intrinsic
def tile_subtract(ctx: Any, shape: Any, acc: Any, m: Any, s: Any, stride: Any) -> Codegen:
    """acc -= the rows' minima at m * the columns' sums at s, s + stride..."""
    sh = shape.value

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Value:
        _, tile, m, s, stride = args
        rows = [b.fneg(_vector(b, F32, _offset(b, m, LINE * g))) for g in range(sh.groups)]
        columns = [_splat(b, F32, _offset(b, s, (stride, c))) for c in range(sh.columns)]
        out = [
            overloaded(b, "fmuladd", [rows[g], columns[c], b.extract_value(tile, i)])
            for i, (c, g) in enumerate(sh.cells())
        ]
        return _build(b, out)

    return acc(shape, acc, types.intp, types.intp, types.intp), codegen


@intrinsic
def tile_add(ctx: Any, shape: Any, tile: Any, y: Any, stride: Any) -> Codegen:
    """The floats at y (columns `stride` bytes apart) += the tile."""
    sh = shape.value

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Value:
        _, tile, y, stride = args
        for i, (c, g) in enumerate(sh.cells()):
            at = _offset(b, y, (stride, c), LINE * g)
            b.store(b.fadd(_vector(b, F32, at), b.extract_value(tile, i)), pointer(b, at), align=1)
        return context.get_dummy_value()

    return types.void(shape, tile, types.intp, types.intp), codegen


def _transposed(b: Any, rows: list[Value]) -> list[Value]:
    """A 16 x 16 matrix, transposed in four rounds of shuffles: each swaps blocks of half the size."""
    size = 8
    while size:
        low = [i for i in range(16) if not i & size]
        # Of two rows: the first's lanes outside the swapped block and the second's, and the other way round.
        keep = [i if not i & size else i - size + 16 for i in range(16)]
        take = [i + size if not i & size else i + 16 for i in range(16)]
        for i in low:
            x, y = rows[i], rows[i + size]
            rows[i], rows[i + size] = pick(b, x, y, keep), pick(b, x, y, take)
        size //= 2
    return rows


@intrinsic
def transpose(
    ctx: Any, source: Any, source_stride: Any, target: Any, target_stride: Any, rows: Any
) -> Codegen:
    """16 rows of 16 i32 at source to `rows` (a constant Quads) columns at target; strides in bytes."""
    n = rows.value.n

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Value:
        source, from_stride, target, to_stride, _ = args
        vectors = [_vector(b, I32, _offset(b, source, (from_stride, i))) for i in range(16)]
        for i, vector in enumerate(_transposed(b, vectors)[:n]):
            b.store(vector, pointer(b, _offset(b, target, (to_stride, i))), align=1)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 4, rows), codegen
