"""Matrix products as operations: the division of the work, and what comes after the product."""

from typing import Any

import numpy as np

from .formats.rows import MANY, MATMUL
from .runtime import Struct, at, invoke, jit, kernel, share
from .simd import address_of, f32, i32, i64, load, store
from .tiles import ROWS

LINEAR = Struct("n x x_stride x_block k w w_stride rows matmul y y_stride scale:f bias")
EXPERTS = Struct("starts experts x x_stride x_block k w w_stride w_expert rows matmul y y_stride scales")
EMBED = Struct("n tokens w w_stride k dequantize y")

# x_block: bytes from 256 values of a column to the next; 0: those of all columns lie side by side.

_TASK = len(MATMUL.fields)


@jit
def _rows(total: int, columns: int, thread: int, threads: int) -> tuple[int, int]:
    """A thread's rows: any for few columns, as many as gemm takes at once for more."""
    return share(total, thread, threads, ROWS if columns >= MANY else 1)


@jit
def _product(a: Any, w: int, x: int, y: int, columns: int, all_columns: int, begin: int, end: int) -> None:
    """Rows [begin, end) of w times some of all columns of x; a: LINEAR or EXPERTS."""
    if columns == 0 or begin == end:
        return
    memory = np.empty(_TASK, np.int64)
    task = address_of(memory)
    t = at(MATMUL, task)
    t.w, t.w_stride, t.rows = w + begin * a.w_stride, a.w_stride, end - begin
    t.x, t.x_stride, t.k, t.columns = x, a.x_stride, a.k, columns
    t.x_block = a.x_block or all_columns * a.x_stride
    t.y, t.y_stride = y + 4 * begin, a.y_stride
    invoke(a.matmul, (task,))
    memory[0] = 0  # keeps the array alive until here: Numba does not see its address in use


@jit
def _scale_and_bias(y: int, bias: int, scale: np.float32, begin: int, end: int) -> None:
    """y[begin:end] * scale + bias (0: none)."""
    for i in range(begin, end):
        value = load(f32, y + 4 * i) * scale
        if bias != 0:
            value += load(f32, bias + 4 * i)
        store(f32, value, y + 4 * i)


@kernel
def linear(args: int, thread: int, threads: int) -> None:
    """LINEAR: y[n, rows] = x[n, k] . w[rows, k]^T * scale + bias."""
    a = at(LINEAR, args)
    n = load(i64, a.n)
    begin, end = _rows(a.rows, n, thread, threads)
    _product(a, a.w, a.x, a.y, n, n, begin, end)
    if a.bias != 0 or a.scale != 1.0:
        for i in range(n):
            _scale_and_bias(a.y + i * a.y_stride, a.bias, np.float32(a.scale), begin, end)


@kernel
def experts(args: int, thread: int, threads: int) -> None:
    """EXPERTS: the columns starts[e] to starts[e + 1] times expert e's weights, where there are some."""
    a = at(EXPERTS, args)
    pairs = np.int64(load(i32, a.starts + 4 * a.experts))
    for e in range(a.experts):
        first, last = np.int64(load(i32, a.starts + 4 * e)), np.int64(load(i32, a.starts + 4 * e + 4))
        x, y = a.x + first * a.x_stride, a.y + first * a.y_stride
        begin, end = _rows(a.rows, last - first, thread, threads)
        _product(a, a.w + e * a.w_expert, x, y, last - first, pairs, begin, end)
        if a.scales != 0:
            for i in range(last - first):
                _scale_and_bias(y + i * a.y_stride, 0, load(f32, a.scales + 4 * e), begin, end)


@kernel
def embed(args: int, thread: int, threads: int) -> None:
    """EMBED: rows `tokens` (int32) of w to y[n, k] float32."""
    a = at(EMBED, args)
    begin, end = share(load(i64, a.n), thread, threads, 1)
    for i in range(begin, end):
        invoke(a.dequantize, (a.w + load(i32, a.tokens + 4 * i) * a.w_stride, a.k, a.y + 4 * a.k * i))
