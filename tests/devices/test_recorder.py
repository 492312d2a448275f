"""The CPU's recorder: a barrier before each operation that needs one, and before no other."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from ggrun import LLM
from ggrun.devices.base import Cells, Limits, Rows
from ggrun.devices.cpu import Cpu
from ggrun.devices.cpu_recorder import CpuRecorder
from ggrun.engine.weights import Weights
from ggrun.gguf import GGUF
from tests.tiny import Tiny

WIDTH = 64
# What each operation reads and writes, as the kernels' own docstrings have it: names of its arguments.
TOUCHES = {
    "linear.embed": ("", "y"),
    "linear.linear": ("x", "y"),
    "linear.experts": ("x starts", "y"),
    "columns.quantize": ("x", "y"),
    "elementwise.pick": ("x rows", "y"),
    "elementwise.rms_norm": ("x", "y"),
    "elementwise.rope_table": ("", "table"),
    "elementwise.rope": ("x table", "x"),
    "elementwise.swiglu": ("gate up", "y"),
    "elementwise.add": ("x y", "y"),
    "attention.store_cells": ("x", "cells"),
    "attention.attend": ("q keys values", "y"),
    "moe.route": ("logits", "logits chosen weights"),
    "moe.sort": ("chosen", "starts tokens places"),
    "moe.combine": ("x weights places", "y"),
}


def needed(recorder: CpuRecorder) -> list[int]:
    """Where barriers must stand, from the arguments that kernels are given: by the definition of a hazard."""
    flags, since = [], []
    for kernel, arguments in ((o.kernel, o.arguments) for o in recorder._operations):
        reads, writes = ({int(arguments[f][0]) for f in fields.split()} for fields in TOUCHES[kernel.name])
        waits = any(reads & written or writes & (read | written) for read, written in since)
        since = [(reads, writes)] if waits else [*since, (reads, writes)]
        flags.append(int(waits))
    return flags


def barriers(recorder: CpuRecorder) -> list[int]:
    return [int(o.waits) for o in recorder._operations]


def names(recorder: CpuRecorder) -> list[str]:
    return [o.kernel.name.partition(".")[2] for o in recorder._operations]


@pytest.fixture
def r() -> CpuRecorder:
    return Cpu(1).recorder(Limits(tokens=8, outputs=8, sequences=1, pages=1))


@pytest.fixture
def quantized(tmp_path: Path) -> Weights:
    """A model whose products quantize their columns."""
    return Weights(GGUF(Tiny(format=GGMLQuantizationType.Q8_0).write(tmp_path / "q8.gguf")), Cpu(1))


def norm(r: CpuRecorder, x: Any) -> Any:
    return r.norm(x, np.ones(WIDTH, np.float32), 1e-5)


def rope_table(r: CpuRecorder, dims: int = 16) -> Any:
    return r.rope_table(np.ones(dims // 2, np.float32), dims, 1.0, 0.0, 1.0)


def square(weights: Weights, name: str = "attn_q") -> Any:
    return weights.matrix(f"blk.0.{name}.weight", WIDTH, WIDTH)


# ---------------------------------------------------------------- one hazard at a time


def test_what_does_not_touch_needs_no_barrier(r: CpuRecorder) -> None:
    x, y = r.input(WIDTH), r.input(WIDTH)
    kept = [norm(r, x), norm(r, x), norm(r, y)]
    assert barriers(r) == [0, 0, 0]
    assert len({buffer.address for buffer in kept}) == 3


def test_read_after_write(r: CpuRecorder) -> None:
    x = r.input(WIDTH)
    y = norm(r, x)
    z = norm(r, y)
    w = norm(r, z)
    again = norm(r, y)  # y was written before the last barrier
    assert barriers(r) == [0, 1, 1, 0]
    assert again.address not in (x.address, y.address, z.address, w.address)


def test_write_after_read(r: CpuRecorder) -> None:
    x, other = r.input(WIDTH), r.input(WIDTH)
    kept = norm(r, x)
    r.add(other, x)
    assert barriers(r) == [0, 1]
    assert kept.address != x.address


def test_write_after_write_where_memory_is_used_again(r: CpuRecorder) -> None:
    x = r.input(WIDTH)
    y = norm(r, x)
    address = y.address
    del y
    z = norm(r, x)
    assert z.address == address
    assert barriers(r) == [0, 1]


def test_write_after_read_where_memory_is_used_again(r: CpuRecorder) -> None:
    x = r.input(WIDTH)
    y = norm(r, x)
    address = y.address
    z = norm(r, y)
    del y
    w = norm(r, x)
    assert w.address == address != z.address
    assert barriers(r) == [0, 1, 1]


def test_the_rope_table_is_read(r: CpuRecorder) -> None:
    x, y = r.input(WIDTH), r.input(WIDTH)
    table = rope_table(r)
    r.rope(x, table, 4, True)
    r.rope(y, table, 4, True)
    address = table.angles.address
    del table
    second = rope_table(r)
    assert second.angles.address == address
    assert names(r) == ["rope_table", "rope", "rope", "rope_table"]
    assert barriers(r) == [0, 1, 0, 1]


def test_cells_are_written_and_read(r: CpuRecorder) -> None:
    device = Cpu(1)
    keys, values = (Cells(device.zeros(64 * 2 * 64, "cells"), "f32", 1, 16, 64) for _ in range(2))
    q, k, v = (r.input(16) for _ in range(3))
    r.store(k, keys)
    r.store(v, values)
    first = r.attend(q, keys, values, 1, 0.25)
    second = r.attend(q, keys, values, 1, 0.25)
    r.store(k, values)  # which attend has read
    r.store(v, keys)  # likewise, but before the barrier that came with the last
    assert first.address != second.address
    assert barriers(r) == [0, 0, 1, 0, 1, 0]


def test_each_argument_is_read(r: CpuRecorder) -> None:
    """Each one that was just written, while the others are old, is waited for."""
    device = Cpu(1)
    cells = Cells(device.zeros(64 * WIDTH * 4, "cells"), "f32", 1, WIDTH, 64)
    other = Cells(device.zeros(64 * WIDTH * 4, "cells"), "f32", 1, WIDTH, 64)
    old, up, table = r.input(WIDTH), r.input(WIDTH), rope_table(r)
    kept: list[Any] = []  # nothing is dropped, so that no memory is used again

    def new(x: Any = old) -> Any:
        kept.append(norm(r, x))
        return kept[-1]

    readers = [
        lambda: r.swiglu(new(), up),
        lambda: r.swiglu(up, new()),
        lambda: r.add(new(), up),
        lambda: r.add(up, new()),
        lambda: r.rope(new(), table, 1, True),
        lambda: r.store(new(), cells),
        lambda: r.attend(new(), cells, cells, 1, 1.0),
        lambda: (r.store(old, cells), r.attend(old, cells, other, 1, 1.0)),
        lambda: (r.store(old, cells), r.attend(old, other, cells, 1, 1.0)),
        lambda: r.pick(new()),
        lambda: r.route(new(), 2, True),
    ]
    for i, read in enumerate(readers):
        new(new())  # a barrier, which all but what is new is behind
        before = len(r._operations)
        kept.append(read())
        assert barriers(r)[before + 1] == 1, i
    assert barriers(r) == needed(r)


ROUTED = ("weights", "places", "starts", "tokens")


def reused(r: CpuRecorder, routing: list[Any], field: str) -> int:
    """The barrier of an operation that writes where a part of a routing was, the others being kept."""
    small = r.input(2)
    parts = {name: getattr(routing[0], name) for name in ROUTED}
    routing.clear()
    address = parts.pop(field).address
    y = r.norm(small, np.ones(2, np.float32), 1e-5)
    assert y.address == address
    return barriers(r)[-1]


@pytest.mark.parametrize(("field", "flag"), [*zip(ROUTED, (0, 1, 1, 1), strict=True)])
def test_what_sort_has_written(field: str, flag: int, r: CpuRecorder) -> None:
    """Weights were there before the barrier of sort, which reads what route has chosen."""
    routing = [r.route(r.input(20), 2, True)]  # so many experts that all parts are as large as y
    assert barriers(r) == [0, 1]
    assert reused(r, routing, field) == flag


def test_route_writes_weights(r: CpuRecorder) -> None:
    logits, small = r.input(4), r.input(2)
    address = r.norm(small, np.ones(2, np.float32), 1e-5).address  # dropped at once
    routing = r.route(logits, 2, True)
    assert routing.weights.address == address
    assert barriers(r) == [0, 1, 1]


@pytest.mark.parametrize(("field", "flag"), [*zip(ROUTED, (1, 1, 0, 0), strict=True)])
def test_what_combine_has_read(field: str, flag: int, r: CpuRecorder) -> None:
    """Tokens were read before the barrier of combine, which reads the pairs."""
    x = r.input(WIDTH)
    routing = [r.route(r.input(20), 2, True)]  # so many experts that all parts are as large as y
    kept = r.combine(r.spread(x, routing[0]), routing[0])
    assert barriers(r) == [0, 1, 1, 1]
    assert reused(r, routing, field) == flag
    assert kept.width == WIDTH


def test_starts_of_experts_are_read(r: CpuRecorder, tmp_path: Path) -> None:
    weights = Weights(GGUF(Tiny(experts=4, experts_used=2).write(tmp_path / "moe.gguf")), Cpu(1))
    w = weights.matrix("blk.0.ffn_gate_exps.weight", WIDTH, 96, experts=4)
    x, logits, more = r.input(WIDTH), r.input(4), r.input(4)
    pairs = r.spread(x, r.route(logits, 2, True))
    routing = r.route(more, 2, True)
    # The pairs were written before the last barrier (of sort); the starts are all that is new.
    kept = r.experts(pairs, w, routing)
    assert names(r) == ["route", "sort", "pick", "route", "sort", "experts"]
    assert barriers(r)[-2:] == [1, 1]
    assert barriers(r) == needed(r)
    assert kept.rows == Rows.PAIRS


# ---------------------------------------------------------------- quantized columns


def test_columns_are_quantized_once_for_all_products(r: CpuRecorder, quantized: Weights) -> None:
    x = r.input(WIDTH)
    kept = [r.linear(x, square(quantized)), r.linear(x, square(quantized, "attn_output"))]
    assert names(r) == ["quantize", "linear", "linear"]
    assert barriers(r) == [0, 1, 0]
    assert len(kept) == 2


def write_in_place(r: CpuRecorder, how: str, x: Any) -> None:
    """Change x where it lies, by one of the operations that do."""
    if how == "add":
        r.add(r.input(WIDTH), x)
    elif how == "rope":
        r.rope(x, rope_table(r), 4, True)
    elif how == "swiglu":
        assert r.swiglu(x, r.input(WIDTH)) is x
    else:
        r.route(x, 2, True)


@pytest.mark.parametrize("how", ["add", "rope", "swiglu", "route"])
def test_columns_are_made_anew_after_a_write(how: str, r: CpuRecorder, quantized: Weights) -> None:
    x = r.input(WIDTH)
    first = r.linear(x, square(quantized))
    write_in_place(r, how, x)
    second = r.linear(x, square(quantized))
    assert names(r).count("quantize") == 2
    assert names(r)[-2:] == ["quantize", "linear"]
    assert barriers(r) == needed(r)
    assert first.address != second.address


def test_products_before_and_after_a_write(r: CpuRecorder, quantized: Weights) -> None:
    """The same, in numbers."""
    device = Cpu(3)
    r = device.recorder(Limits(tokens=8, outputs=8, sequences=1, pages=1))
    x, more, w = r.input(WIDTH), r.input(WIDTH), square(quantized)
    before = r.linear(x, w)
    r.add(more, x)
    after = r.linear(x, w)
    program = r.finish()
    a, b = np.random.default_rng(1).standard_normal((2, 8, WIDTH)).astype(np.float32)
    r.inputs.counts[Rows.TOKENS] = 8
    device.write(r.place(x), a)
    device.write(r.place(more), b)
    program.run()
    tensor = quantized._model.tensors["blk.0.attn_q.weight"]
    blocks = tensor.data.reshape(WIDTH, 2, 34)
    scales = blocks[:, :, :2].copy().view(np.float16).astype(np.float64)
    matrix = (blocks[:, :, 2:].view(np.int8) * scales).reshape(WIDTH, WIDTH)
    for buffer, want in ((before, a @ matrix.T), (after, (a + b) @ matrix.T)):
        got = r.place(buffer).array(8)
        assert np.linalg.norm(got - want) < 2e-2 * np.linalg.norm(want)
    device.close()


# ---------------------------------------------------------------- whole models


@pytest.mark.parametrize(
    "model",
    [
        Tiny(),
        Tiny(arch="qwen2", biases=True, tied=True, format=GGMLQuantizationType.Q8_0),
        Tiny(arch="qwen3", head_norms=True, layers=3, format=GGMLQuantizationType.F16),
        Tiny(arch="mistral3", extra={"attention.temperature_scale": 0.1, "attention.temperature_length": 8}),
        Tiny(experts=4, experts_used=2),
        Tiny(experts=7, experts_used=1, format=GGMLQuantizationType.Q8_0),
    ],
    ids=["llama", "qwen2 q8_0", "qwen3 f16", "mistral3", "experts", "experts q8_0"],
)
def test_every_barrier_of_a_model(model: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[CpuRecorder] = []

    def recorder(self: Cpu, limits: Limits) -> CpuRecorder:
        made.append(CpuRecorder(self.pool, limits))
        return made[-1]

    monkeypatch.setattr(Cpu, "recorder", recorder)
    with LLM(model.write(tmp_path / "model.gguf"), threads=1):
        assert len(made) == 1
        assert len(made[0]._operations) > 20
        assert barriers(made[0]) == needed(made[0])
