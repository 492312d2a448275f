"""The kernels that gpu_kernels.py times: products of every format, attention, and all that is small.

Shapes are those of Llama 3 8B, but for experts, which are those of Qwen3 30B-A3B; tiny on the emulator.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from gguf import GGMLQuantizationType, quants

from ggrun.devices.base import Cells
from ggrun.devices.cuda.attention import PAGE, row_bytes
from ggrun.devices.cuda.gemm import GemmFrom
from ggrun.devices.cuda.memory import CudaWeight
from ggrun.devices.cuda.products import column_bytes
from ggrun.devices.cuda.program import FEW, Counts
from ggrun.gguf import FORMATS
from tools.gpu_rig import ALWAYS, NEVER, Floats, Rig, Timed
from tools.gpu_small import small_cases
from tools.gpu_time import sets_for

Case = Callable[[Rig], Sequence[Timed]]
Named = tuple[str, Case]

_FORMATS = ("Q4_K", "Q6_K", "Q8_0", "Q5_K", "Q4_0", "IQ4_XS", "Q3_K", "Q2_K", "IQ3_S", "MXFP4", "F16", "BF16")
_RARER = (
    "Q4_1", "Q5_0", "Q5_1", "IQ4_NL", "TQ1_0", "TQ2_0", "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S",
    "IQ3_XXS", "F32",
)  # fmt: skip
FORMATS_TIMED = (*_FORMATS, *_RARER)
_FF, _WIDTH, _VOCAB = 14336, 4096, 128256
_SHAPES = ((4096, 4096), (1024, 4096), (4096, 14336), (8192, 8192), (28672, 8192))  # rows, values of one
_HEADS, _KV_HEADS, _HEAD = 32, 8, 128
_CHECKED_ROWS = 16
_CHUNK = 2048  # positions that are stored at once
_OF_PRODUCTS = ("mat", "sum_splits", "dequantize", "gemm", "finish")
"""How the names begin of what a product is made of."""


def cases(tiny: bool) -> list[Named]:
    """All, with their names; what the bars are about comes first."""
    if tiny:
        return [
            *_products(("Q4_K", "F16"), 64, 256, (1, 2, 16)),
            ("queries, keys and values", partial(_merged, "Q4_K", (64, 32, 32), 256, (1, 2))),
            *_attention(4, 2, 64, (100,), 20),
            *small_cases(tiny),
        ]
    return [
        *_products(_FORMATS, _FF, _WIDTH, (1, 8, 512)),
        ("queries, keys and values", partial(_merged, "Q4_K", (4096, 1024, 1024), _WIDTH, (1, 8))),
        *_attention(_HEADS, _KV_HEADS, _HEAD, (1 << 10, 1 << 13, 1 << 15), 512),
        *small_cases(tiny),
        *(("Q4_K of another shape", partial(_product, "Q4_K", *shape, (1,))) for shape in _SHAPES),
        ("the output matrix", partial(_product, "Q6_K", _VOCAB, _WIDTH, (1,))),
        *(
            (f"{name} by columns", partial(_product, name, _FF, _WIDTH, (1024, 2048)))
            for name in ("Q4_K", "Q6_K", "Q8_0", "F16")
        ),
        ("Q4_K by fewer columns", partial(_product, "Q4_K", _FF, _WIDTH, (2, 4, 16, 32, 64, 128, 256))),
        *((f"products of {name}", partial(_product, name, _FF, _WIDTH, (1,))) for name in _RARER),
    ]


# ---------------------------------------------------------------- products


def _products(formats: Sequence[str], rows: int, k: int, columns: tuple[int, ...]) -> list[Named]:
    swiglu = ("gate and up", partial(_swiglu, formats[0], rows, k, columns[:2]))
    return [*((f"products of {name}", partial(_product, name, rows, k, columns)) for name in formats), swiglu]


def _product(name: str, rows: int, k: int, columns: Sequence[int], rig: Rig) -> list[Timed]:
    """One matrix times so many columns each; many go by our tiles and by cuBLAS, one beside the other.

    The columns are quantized, or made float16, before.
    """
    weights, found = rig.weights(name, rows, k), []
    for n in columns:
        found.append(_multiplied(rig, weights, n, NEVER))
        if n > FEW and rig.driver.has_gemm:
            found.append(_multiplied(rig, weights, n, ALWAYS))
    return found


def _multiplied(rig: Rig, weights: Sequence[CudaWeight], n: int, by: GemmFrom) -> Timed:
    name, rows, k = weights[0].format, weights[0].rows, weights[0].columns
    ops, counts = rig.recorder(n, gemm_from=by), Counts(n, n, n, 1, PAGE)
    x, values = rig.input(ops, n, k)
    programs, y = [], 0
    for w in weights:
        y = ops.place(ops.linear(x, w)).address  # dropped at once: all write to the same place
        programs.append(ops.finish())
    rig.works(programs[:1], counts)[0]()
    kind = "matvec" if n <= FEW else "cuBLAS" if by is ALWAYS else "matmul"
    title = f"{kind} {name} {rows}x{k}, {n} column{'s' * (n > 1)}"
    moved = FORMATS[name].nbytes(k) * rows + n * (_column_bytes(name, k) + 4 * rows)
    error = partial(_error, rig.data(name, rows, k), name, rows, values)
    operations = 0 if n <= FEW else 2 * n * rows * k
    work = rig.works(programs, counts, *_OF_PRODUCTS)
    return Timed(title, work, moved, operations, (y, (n, rows)), error, graph=by is NEVER)


def _column_bytes(name: str, k: int) -> int:
    return 4 * k if name in ("F32", "F16", "BF16") else column_bytes(k)


def _error(data: np.ndarray, name: str, rows: int, x: Floats, y: Floats) -> float:
    """How far some rows' products are from what gguf-py and float64 make of them."""
    some = np.linspace(0, rows - 1, min(rows, _CHECKED_ROWS)).astype(int)
    blocks = np.ascontiguousarray(data.reshape(rows, -1)[some])
    exact = quants.dequantize(blocks, GGMLQuantizationType[name]).astype(np.float64)
    want = x.astype(np.float64) @ exact.T
    return float(np.linalg.norm(y[:, some] - want) / np.linalg.norm(want))


def _swiglu(name: str, rows: int, k: int, columns: Sequence[int], rig: Rig) -> list[Timed]:
    weights, found = rig.weights(name, rows, k), []
    pairs = list(zip(weights[::2], weights[1::2], strict=False))
    for n in columns:
        ops, counts = rig.recorder(n), Counts(n, n, n, 1, PAGE)
        x, _ = rig.input(ops, n, k)
        programs, y = [], 0
        for gate, up in pairs:
            y = ops.place(ops.swiglu(ops.linear(x, gate), ops.linear(x, up))).address
            programs.append(ops.finish())
        rig.works(programs[:1], counts)[0]()
        moved = 2 * FORMATS[name].nbytes(k) * rows + n * (column_bytes(k) + 4 * rows)
        title = f"gate, up and silu {name} 2x{rows}x{k}, {n} column{'s' * (n > 1)}"
        found.append(Timed(title, rig.works(programs, counts, "matvec"), moved, 0, (y, (n, rows))))
    return found


def _merged(name: str, rows: Sequence[int], k: int, columns: Sequence[int], rig: Rig) -> list[Timed]:
    """Several matrices times the same columns, in one launch; what the first gives is checked."""
    nbytes, found = FORMATS[name].nbytes(k) * sum(rows), []
    count = sets_for(nbytes, rig.driver)
    matrices = list(zip(*([rig.weight(name, each, k) for _ in range(count)] for each in rows), strict=True))
    for n in columns:
        ops, counts = rig.recorder(n), Counts(n, n, n, 1, PAGE)
        x, values = rig.input(ops, n, k)
        programs, y = [], 0
        for several in matrices:
            products = [ops.linear(x, w) for w in several]
            y = ops.place(products[0]).address
            programs.append(ops.finish())
        rig.works(programs[:1], counts)[0]()
        moved = nbytes + n * (column_bytes(k) + 4 * sum(rows))
        shape = f"{'+'.join(map(str, rows))}x{k}"
        title = f"queries, keys and values {name} {shape}, {n} column{'s' * (n > 1)}"
        error = partial(_error, rig.data(name, rows[0], k), name, rows[0], values)
        work = rig.works(programs, counts, "matvec_merged")
        found.append(Timed(title, work, moved, 0, (y, (n, rows[0])), error))
    return found


# ---------------------------------------------------------------- attention


def _attention(heads: int, kv_heads: int, dim: int, contexts: Sequence[int], prompt: int) -> list[Named]:
    shape = heads, kv_heads, dim
    cases: list[Named] = [(f"attention at {c}", partial(_attend, *shape, "f16", c, (1,))) for c in contexts]
    middle = contexts[len(contexts) // 2]
    cases += [
        (f"attention over {kind}", partial(_attend, *shape, kind, middle, (1, 8, prompt)))
        for kind in ("q8_0", "bf16")
    ]
    cases += [("attention of 8 and of many", partial(_attend, *shape, "f16", middle, (8, prompt)))]
    return [*cases, ("attention of a prompt", partial(_attend, *shape, "f16", 4 * prompt, (prompt,)))]


def _attend(
    heads: int, kv_heads: int, dim: int, kind: str, context: int, tokens: Sequence[int], rig: Rig
) -> list[Timed]:
    """The last so many tokens of a context, each over what is before it."""
    size = context * kv_heads * row_bytes(kind, dim)  # of keys, and of values
    count = sets_for(2 * size, rig.driver)
    pages = -(-context // PAGE)
    cells = [_filled(rig, kind, kv_heads, dim, context, pages) for _ in range(count)]
    return [_attended(rig, heads, cells, context, n, pages, size) for n in tokens]


def _attended(
    rig: Rig, heads: int, cells: list[tuple[Cells, Cells]], context: int, n: int, pages: int, size: int
) -> Timed:
    dim, kind = cells[0][0].dim, cells[0][0].kind
    ops = rig.recorder(n, pages)
    q, _ = rig.input(ops, n, heads * dim)
    programs, y = [], 0
    for keys, values in cells:
        y = ops.place(ops.attend(q, keys, values, heads, dim**-0.5)).address
        programs.append(ops.finish())
    counts = rig.at(ops, context - n, n)
    seen = sum(range(context - n + 1, context + 1))  # positions, by all tokens
    what = "decode" if n <= 8 else "prefill"
    title = f"attention {what} {kind}, {n} token{'s' * (n > 1)} at {context}"
    moved, operations = 2 * size + 8 * n * heads * dim, 4 * seen * heads * dim
    out = y, (n, heads * dim)
    return Timed(title, rig.works(programs, counts), moved, operations if n > 8 else 0, out, keep=cells)


def _filled(rig: Rig, kind: str, heads: int, dim: int, context: int, pages: int) -> tuple[Cells, Cells]:
    """Random keys and values, kept as the product keeps them."""
    nbytes = pages * PAGE * heads * row_bytes(kind, dim)
    chunk = min(context, _CHUNK)
    ops = rig.recorder(chunk, pages)
    found, programs = [], []
    for what in ("keys", "values"):
        found.append(Cells(rig.card.zeros(nbytes, what), kind, heads, dim, PAGE))
        x, _ = rig.input(ops, chunk, heads * dim)
        ops.store(x, found[-1])
        programs.append(ops.finish())
    for first in range(0, context, chunk):
        counts = rig.at(ops, first, min(chunk, context - first))
        for work in rig.works(programs, counts):
            work()
    rig.driver.stream.synchronize()
    return found[0], found[1]
