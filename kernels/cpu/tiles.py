"""Tiles: accumulators of a matrix product that stay in registers.

A tile is the product of `groups` times 16 rows and `columns` columns: a tuple of vectors of 16 rows, column
by column. Weights lie in scratch memory as [4 values][row]: a lane is a row, and holds four bytes of it.
Every vector of weights meets `columns` broadcast quads of column bytes, and every broadcast meets `groups`
vectors; two or more of each are what keeps the dot products busy and not the loads.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from .kinds import Codegen, Vec, intrinsic, static
from .llvm_ir import (
    F32,
    I16,
    I32,
    I64,
    ISA,
    Value,
    across,
    broadcast,
    const,
    dot4,
    opaque,
    overloaded,
    packed,
    pair_sums,
    pick,
    pointer,
    products,
    room,
)

LINE = 64  # bytes in a vector of 16 rows
GROUPS = 4  # of 16 rows in scratch memory
ROWS = 16 * GROUPS
STRIDE = LINE * GROUPS  # from one quad of all rows (or one sub-block's scales) to the next


class Shape:
    """How large a tile is, and the largest byte of its weights (see llvm_ir.dot4)."""

    def __init__(self, groups: int, columns: int, largest: int = 127) -> None:
        self.groups, self.columns, self.largest = groups, columns, largest

    def tile(self, elem: str) -> Any:
        """The Numba type of its accumulators."""
        return types.UniTuple(Vec(elem, 16), self.groups * self.columns)

    def cells(self) -> list[tuple[int, int]]:
        """All (column, group), in the order of the tuple."""
        return [(c, g) for c in range(self.columns) for g in range(self.groups)]


# (groups, columns): sums for most of the registers, and more products than loads. Those for AVX-512 were the
# fastest of several that were measured; the others are by the number of registers.
BYTES_TILE = {"avx512": (4, 3), "avx2": (1, 4), "portable": (1, 2)}[ISA]
HALVES_TILE = {"avx512": (4, 2), "avx2": (1, 4), "portable": (1, 2)}[ISA]  # with two products of each
FLOATS_TILE = {"avx512": (2, 8), "avx2": (1, 4), "portable": (1, 2)}[ISA]


static(Shape, lambda s: f"{s.groups},{s.columns},{s.largest}")


_Quad = Callable[[Value], Iterator[tuple[Value, Value]]]
"""From the number of four bytes to a tile's pairs of weights and a column, in the order of its cells."""


def _offset(b: Any, address: Value, *terms: Any) -> Value:
    """address + terms; each a number or a pair (value, factor)."""
    for term in terms:
        value, factor = term if isinstance(term, tuple) else (None, term)
        step = const(address.type, factor)
        address = b.add(address, step if value is None else b.mul(value, step))
    return address


def _vector(b: Any, elem: Any, address: Value, n: int = 16) -> Value:
    return b.load(pointer(b, address), typ=ir.VectorType(elem, n), align=1)


def _splat(b: Any, elem: Any, address: Value) -> Value:
    return broadcast(b, b.load(pointer(b, address), typ=elem, align=1), 16)


@intrinsic
def tile_zero(ctx: Any, shape: Any, kind: Any) -> Codegen:
    """A tile of zeros."""
    s, vec = shape.value, kind.value.register

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Value:
        return packed(b, [ir.Constant(vec.ir, None)] * (s.groups * s.columns))

    return s.tile(vec.elem)(shape, kind), codegen


@intrinsic
def tile_load(ctx: Any, shape: Any, y: Any, stride: Any) -> Codegen:
    """The tile of the floats at y, columns `stride` bytes apart."""
    s = shape.value

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Value:
        _, y, stride = args
        return packed(b, [_vector(b, F32, _offset(b, y, (stride, c), LINE * g)) for c, g in s.cells()])

    return s.tile("f32")(shape, types.intp, types.intp), codegen


@intrinsic
def tile_start(ctx: Any, shape: Any, factor: Any, n: Any, stride: Any) -> Codegen:
    """The columns' numbers (i32) at n, n + stride... times a constant Number, for all rows."""
    s, by = shape.value, factor.value.n

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Value:
        _, _, n, stride = args
        if not by:
            return packed(b, [ir.Constant(ir.VectorType(I32, 16), None)] * len(s.cells()))
        columns = [_splat(b, I32, _offset(b, n, (stride, c))) for c in range(s.columns)]
        columns = [b.mul(column, const(column.type, by)) for column in columns]
        return packed(b, [columns[c] for c, _ in s.cells()])

    return s.tile("i32")(shape, factor, types.intp, types.intp), codegen


@intrinsic
def tile_dot(ctx: Any, shape: Any, acc: Any, w: Any, x: Any, x_stride: Any, quads: Any) -> Codegen:
    """acc += `quads` (a constant Number) times four bytes of each row at w and each column at x.

    Those of a column lie as in columns.py.
    """
    s, steps = shape.value, quads.value.n

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Value:
        _, tile, w, x, stride, _ = args
        sums = [b.extract_value(tile, i) for i in range(len(s.cells()))]

        def quad(j: Value) -> Iterator[tuple[Value, Value]]:
            weights = [_vector(b, I32, _offset(b, w, (j, STRIDE), LINE * g)) for g in range(s.groups)]
            for c in range(s.columns):
                column = _splat(b, I32, _offset(b, x, (stride, c), *_quad_of_column(b, j)))
                yield from ((rows, column) for rows in weights)

        if ISA != "avx512":
            return packed(b, _dots_by_words(b, s.largest, sums, steps, quad))
        for j in range(steps):
            sums = [
                dot4(b, s.largest, acc, *pair) for acc, pair in zip(sums, quad(const(I64, j)), strict=True)
            ]
        return packed(b, sums)

    return acc(shape, acc, types.intp, types.intp, types.intp, quads), codegen


def _quad_of_column(b: Any, j: Value) -> list[tuple[Value, int]]:
    """Where quad j of a column's block is (see columns.py): four to each half."""
    return [(b.and_(j, const(I64, 3)), 64), (b.lshr(j, const(I64, 2)), 16)]


def _dots_by_words(b: Any, largest: int, sums: list[Value], steps: int, quad: _Quad) -> list[Value]:
    """sums + the dot products of `steps` quads: summed as i16 for as long as that has room for them."""
    at_once = 1 << min(steps, room(largest)).bit_length() - 1
    totals = _Variables(b, sums)
    with _rounds(b, steps // at_once) as i:
        words = _Variables(b, [ir.Constant(ir.VectorType(I16, 32), None)] * len(sums))
        with _rounds(b, at_once) as j:
            step = b.add(b.mul(i, const(I64, at_once)), j)
            new = [products(b, largest, *pair) for pair in quad(step)]
            words.set([b.add(old, more) for old, more in zip(words.get(), new, strict=True)])
        new = [pair_sums(b, v) for v in words.get()]
        totals.set([b.add(old, more) for old, more in zip(totals.get(), new, strict=True)])
    return totals.get()


class _Variables:
    """Values that change in a loop (LLVM keeps them in registers)."""

    def __init__(self, b: Any, values: Sequence[Value]) -> None:
        self._b = b
        self._places = [cgutils.alloca_once(b, value.type) for value in values]
        self.set(values)

    def get(self) -> list[Value]:
        return [self._b.load(place) for place in self._places]

    def set(self, values: Sequence[Value]) -> None:
        for place, value in zip(self._places, values, strict=True):
            self._b.store(value, place)


@contextmanager
def _rounds(b: Any, n: int) -> Iterator[Value]:
    """A loop that stays one; gives the number of the round."""
    if n == 1:
        yield const(I64, 0)
    else:
        with cgutils.for_range(b, opaque(b, const(I64, n))) as loop:
            yield loop.index


class Number:
    """A constant number that shapes the code."""

    def __init__(self, n: int) -> None:
        self.n = n


static(Number, lambda number: str(number.n))


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
        return packed(b, out)

    return acc(shape, acc, types.intp, types.intp, types.intp), codegen


@intrinsic
def tile_dots(ctx: Any, shape: Any, acc: Any, w: Any, x: Any, x_stride: Any) -> Codegen:
    """acc += 16 values of a row (f32x16) times those of each column at x, x + x_stride..., lane by lane."""
    s = shape.value

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Value:
        _, tile, row, x, stride = args
        return packed(b, [
            overloaded(b, "fmuladd", [
                row, _vector(b, F32, _offset(b, x, (stride, c))), b.extract_value(tile, c)
            ])
            for c in range(s.columns)
        ])  # fmt: skip

    return acc(shape, acc, w, types.intp, types.intp), codegen


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
            value = b.sitofp(b.extract_value(products, i), ir.VectorType(F32, 16))
            scale = b.fmul(rows[g], columns[c])
            out.append(overloaded(b, "fmuladd", [value, scale, b.extract_value(tile, i)]))
        return packed(b, out)

    return acc(shape, acc, products, types.intp, types.intp, types.intp), codegen


@intrinsic
def tile_scale_two(
    ctx: Any, shape: Any, acc: Any, first: Any, second: Any, d: Any, s: Any, stride: Any
) -> Codegen:
    """acc += (first * the rows' scales at d + second * those STRIDE further) * the columns' scales at s."""
    sh = shape.value

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Value:
        _, tile, first, second, d, s, stride = args
        columns = [_splat(b, F32, _offset(b, s, (stride, c))) for c in range(sh.columns)]
        rows, rows_2 = (
            [_vector(b, F32, _offset(b, d, LINE * g + more)) for g in range(sh.groups)]
            for more in (0, STRIDE)
        )
        out = []
        for i, (c, g) in enumerate(sh.cells()):
            one, two = (
                b.sitofp(b.extract_value(tile, i), ir.VectorType(F32, 16)) for tile in (first, second)
            )
            both = overloaded(b, "fmuladd", [two, rows_2[g], b.fmul(one, rows[g])])
            out.append(overloaded(b, "fmuladd", [both, columns[c], b.extract_value(tile, i)]))
        return packed(b, out)

    return acc(shape, acc, first, second, types.intp, types.intp, types.intp), codegen


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
        return packed(b, out)

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
    """A square matrix of 8 x 8 or 16 x 16, transposed by shuffles that are one instruction each."""
    n = len(rows)
    # Of each four rows, column c of a quarter ends in vector c.
    columns = zip(*(across(b, rows[i : i + 4]) for i in range(0, n, 4)), strict=True)
    by_column = [_transposed_quarters(b, list(vectors)) for vectors in columns]
    return [by_column[i % 4][i // 4] for i in range(n)]


def _transposed_quarters(b: Any, vectors: list[Value]) -> list[Value]:
    """As many vectors as they have quarters of four lanes: out i has quarter i of each."""
    if len(vectors) == 1:
        return vectors
    n = vectors[0].type.count
    parts = []
    for first in (0, 4):
        lanes = [q + i for q in range(first, 2 * n, 8) for i in range(4)]
        pairs = [pick(b, x, y, lanes) for x, y in zip(vectors[::2], vectors[1::2], strict=True)]
        parts.append(_transposed_quarters(b, pairs))
    return [vector for both in zip(*parts, strict=True) for vector in both]


@intrinsic
def transpose(
    ctx: Any, source: Any, source_stride: Any, target: Any, target_stride: Any, rows: Any
) -> Codegen:
    """16 rows of 16 i32 at source to `rows` (a constant Number) columns at target; strides in bytes."""
    n = rows.value.n

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Value:
        source, from_stride, target, to_stride, _ = args
        size = 16 if ISA == "avx512" else 8  # what the registers hold
        for row, column in product(range(0, 16, size), range(0, n, size)):
            places = (_offset(b, source, (from_stride, row + i), 4 * column) for i in range(size))
            vectors = _transposed(b, [_vector(b, I32, place, size) for place in places])
            for i, vector in enumerate(vectors[: n - column]):
                b.store(vector, pointer(b, _offset(b, target, (to_stride, column + i), 4 * row)), align=1)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 4, rows), codegen
