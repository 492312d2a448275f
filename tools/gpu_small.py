"""The smaller kernels that gpu_kernels.py times: between products, experts, dequantizing, sampling."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ggrun.devices.base import Cells
from ggrun.devices.best import TopK
from ggrun.devices.cuda import grids, matvec
from ggrun.devices.cuda.attention import PAGE, row_bytes
from ggrun.devices.cuda.products import column_bytes
from ggrun.devices.cuda.program import FEW, Counts
from ggrun.gguf import FORMATS
from ggrun.kernels.code_books import format_defines
from tools.gpu_rig import Rig, Timed
from tools.gpu_time import sets_for

Case = Callable[[Rig], Sequence[Timed]]
_EPS = 1e-5
_SETS = 4  # for experts: each token has others


@dataclass(frozen=True)
class Sizes:
    """Of a model, and how many rows there are in a decode and in a prompt."""

    width: int
    ff: int
    heads: int
    kv_heads: int
    head: int
    vocab: int
    experts: int
    used: int
    expert_width: int
    expert_ff: int
    rows: tuple[int, ...]


REAL = Sizes(4096, 14336, 32, 8, 128, 128256, 128, 8, 2048, 768, (1, 512))
TINY = Sizes(256, 512, 4, 2, 64, 3000, 8, 2, 256, 256, (1, 20))


def small_cases(tiny: bool) -> list[tuple[str, Case]]:
    """All, with their names."""
    s = TINY if tiny else REAL
    return [
        *((f"steps between products, {n} rows", partial(_steps, s, n)) for n in s.rows),
        *((f"dequantize {name}", partial(_dequantize, s, name)) for name in ("Q4_K", "Q6_K", "Q8_0")),
        *((f"experts, {n} tokens", partial(_experts, s, "Q4_K", n, "")) for n in s.rows),
        ("sampling", partial(_sampling, s)),
        ("sums over devices", partial(_sums, s)),
        ("experts of floats", partial(_experts, s, "BF16", s.rows[-1], "matmul_floats_experts")),
    ]


def _rows(n: int) -> str:
    return f"{n} row{'s' * (n > 1)}"


def _steps(s: Sizes, n: int, rig: Rig) -> list[Timed]:
    """Each recorded alone, over the same rows."""
    ops, found = rig.recorder(n, -(-n // PAGE)), []
    counts = rig.at(ops, 0, n)
    x, _ = rig.input(ops, n, s.width)
    ones = rig.card.vector(np.ones(s.width, np.float32))
    small = rig.weight("Q8_0", 32, s.width)
    row = 4 * n * s.width

    def add(what: str, y: Any, nbytes: int, *names: str, fresh: bool = True) -> None:
        out = (ops.place(y).address, (n, y.width)) if fresh else None
        program = ops.finish()
        found.append(
            Timed(f"{what}, {_rows(n)} of {y.width}", rig.works([program], counts, *names), nbytes, 0, out)
        )

    add("rms_norm", ops.norm(x, ones, _EPS), 2 * row)
    normed = ops.norm(x, ones, _EPS)
    ops.linear(normed, small)
    add("rms_norm and quantize", normed, 2 * row + n * column_bytes(s.width), "rms_norm_quantize")
    ops.linear(x, small)
    add("quantize", x, row + n * column_bytes(s.width), "quantize", fresh=False)
    other, _ = rig.input(ops, n, s.width)
    ops.add(other, x)
    add("add", x, 3 * row, fresh=False)
    add("pick rows", ops.pick(x), 2 * row)
    table = rig.weight("Q4_K", 256, s.width)
    add("embed Q4_K", ops.embed(table), row + n * FORMATS["Q4_K"].nbytes(s.width))
    _add_rope(s, n, rig, ops, add)
    return [*found, _silu(s, n, rig)]


def _silu(s: Sizes, n: int, rig: Rig) -> Timed:
    """Not in place, as the product has it: what is there would soon be nothing but zeros."""
    total = n * s.ff
    gate, up, y = (rig.card.vector(rig.normal(total)) for _ in range(3))
    args = gate.address, up.address, y.address, np.int64(total)
    work = rig.launch("activation.cu", "activate_gated", grids.elements(total), args, ACTIVATION="silu")
    what = f"silu and product, {_rows(n)} of {s.ff}"
    return Timed(what, [work], 12 * total, 0, (y.address, (n, s.ff)), keep=(gate, up, y))


def _add_rope(s: Sizes, n: int, rig: Rig, ops: Any, add: Callable[..., None]) -> None:
    """Rope, and what goes to the cache; their rows are heads. First each alone, then as a layer has them."""
    frequencies = rig.card.vector(np.ones(s.head // 2, np.float32))
    table = ops.rope_table(frequencies, s.head, 1.0, 0.0, 1.0)
    add("rope table", table.angles, 4 * n * s.head)
    q, _ = rig.input(ops, n, s.heads * s.head)
    k, v = (rig.input(ops, n, s.kv_heads * s.head)[0] for _ in range(2))
    ops.rope(q, table, s.heads, False)
    add("rope", q, 8 * n * q.width, fresh=False)
    for kind in ("f16", "q8_0"):
        row, pages = s.kv_heads * row_bytes(kind, s.head), -(-n // PAGE)
        keys, values = (
            Cells(rig.card.zeros(pages * PAGE * row, "cells"), kind, s.kv_heads, s.head, PAGE)
            for _ in range(2)
        )
        ops.store(k, keys)
        stored = n * (4 * k.width + row)
        add(f"store {kind}", k, stored, fresh=False)
        ops.rope(q, table, s.heads, False)
        ops.rope(k, table, s.kv_heads, False)
        ops.store(k, keys)
        ops.store(v, values)
        add(f"rope, and store of keys and values {kind}", q, 8 * n * q.width + 2 * stored, fresh=False)


def _dequantize(s: Sizes, name: str, rig: Rig) -> list[Timed]:
    count = s.ff * s.width
    weights = rig.weights(name, s.ff, s.width)
    y = rig.card.working_memory(2 * count)
    shape, defines = matvec.dequantize_shape(count), {"OUTPUT": "f16", **format_defines(name)}
    sets = [
        rig.launch("dequantize.cu", "dequantize", shape, (w.address, y.address, np.int64(count)), **defines)
        for w in weights
    ]
    nbytes = FORMATS[name].nbytes(s.width) * s.ff + 2 * count
    return [Timed(f"dequantize {name} to f16, {s.ff}x{s.width}", sets, nbytes, keep=(weights, y))]


def _experts(s: Sizes, name: str, n: int, begin: str, rig: Rig) -> list[Timed]:
    """A layer of them, each kernel whose name begins so by itself; random logits choose the experts."""
    matrices = [rig.weight(name, rows, k, s.experts) for rows, k in _matrices(s)]
    router = rig.weight("F32", s.experts, s.expert_width)
    ops, kept, programs = rig.recorder(n), [], []
    for _ in range(1 if rig.tiny and n > FEW else _SETS):  # tiles take the emulator long
        x, _ = rig.input(ops, n, s.expert_width)
        programs.append(_layer(s, ops, x, router, matrices, kept))
    pairs = n * s.used
    counts = Counts(n, n, pairs, 1, PAGE)
    for work in rig.works(programs, counts):
        work()
    by_kernel = rig.by_kernel(programs, counts)
    moved, operations = _of_products(s, name, pairs)
    title = f"{n} token{'s' * (n > 1)}, {s.used} of {s.experts} experts, {name}"
    return [
        Timed(
            f"{kernel}, {title}", works, moved.get(kernel, 0), operations.get(kernel, 0),
            keep=(kept, matrices, router, ops),
        )
        for kernel, works in by_kernel.items()
        if kernel.startswith(begin)
    ]  # fmt: skip


def _matrices(s: Sizes) -> list[tuple[int, int]]:
    """Gate, up and down: rows and values of one."""
    return [(s.expert_ff, s.expert_width), (s.expert_ff, s.expert_width), (s.expert_width, s.expert_ff)]


def _layer(s: Sizes, ops: Any, x: Any, router: Any, matrices: list[Any], kept: list[Any]) -> Any:
    gate, up, down = matrices
    routing = ops.route(ops.linear(x, router), s.used, True)
    spread = ops.spread(x, routing)
    hidden = ops.swiglu(ops.experts(spread, gate, routing), ops.experts(spread, up, routing))
    # Another layer must not write where this one's routing is.
    kept += [x, routing, spread, hidden, result := ops.experts(hidden, down, routing)]
    kept.append(ops.combine(result, routing))
    return ops.finish()


def _of_products(s: Sizes, name: str, pairs: int) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes of the kernels of a decode, and operations of those of a prompt."""
    one = FORMATS[name].nbytes(s.expert_width * s.expert_ff)
    moved = {"matvec_experts_swiglu": 2 * pairs * one, "matvec_experts": pairs * one}
    operations = 3 * 2 * pairs * s.expert_width * s.expert_ff
    return moved, {"matmul_experts": operations, "matmul_floats_experts": operations}


def _sampling(s: Sizes, rig: Rig) -> list[Timed]:
    """Of one row of logits."""
    ops, logits, programs = rig.recorder(1), [], []
    for _ in range(sets_for(4 * s.vocab, rig.driver)):
        logits.append(rig.input(ops, 1, s.vocab)[0])
        ops.top_k(logits[-1], 0)
        programs.append(ops.finish())
    return [
        Timed(
            f"{what} of {s.vocab} logits",
            rig.works(programs, Counts(1, 1, 1, 1, PAGE, TopK(k, s.vocab))), 4 * s.vocab, keep=(logits, ops),
        )
        for what, k in (("argmax", 1), ("top 40", 40))
    ]  # fmt: skip


def _sums(s: Sizes, rig: Rig) -> list[Timed]:
    """Of float32, and of what goes over the wire as bfloat16, to which rows are narrowed before."""
    found = []
    for n in s.rows:
        ops, of, total = rig.recorder(n), f"{_rows(n)} of {s.width}", n * s.width
        places, narrow = ([ops.mailbox(s.width, kind) for _ in range(2)] for kind in ("f32", "bf16"))
        target = ops.mailbox(s.width)
        for place, narrowed in zip(places, narrow, strict=True):
            rig.card.write(place, rig.normal(n, s.width))
            rig.card.narrow(place, n, narrowed)
        out = target.address, (n, s.width)
        work = partial(rig.card.narrow, places[0], n, narrow[0])
        found.append(Timed(f"narrow to bf16, {of}", [work], 6 * total, keep=ops))
        for what, parts, nbytes in (("sum of 2", places, 12), ("sum of 2 in bf16", narrow, 8)):
            work = partial(rig.card.sum, parts, n, target)
            found.append(Timed(f"{what}, {of}", [work], nbytes * total, 0, out, keep=ops))
    return found
