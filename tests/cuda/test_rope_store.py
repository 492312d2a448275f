"""rope_store.cu against rope.cu and the cells' layout, bit by bit; and what is recorded as one launch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ggrun.devices.base import Cells, Inputs, Limits
from ggrun.devices.cuda import grids
from ggrun.devices.cuda.attention import row_bytes
from ggrun.devices.cuda.device import Cuda
from ggrun.devices.cuda.driver import Kernel
from ggrun.devices.cuda.recorder import CudaRecorder
from tests.cuda.conftest import Card
from tests.cuda.kv import PAGE, pack
from tests.cuda.models import cards, engine
from tests.cuda.test_matmul import ONE_CARD
from tests.cuda.test_rope import frequencies_of, rotate, rotated, table
from tests.tiny import Tiny

KINDS = [("f32", "bf16"), ("f16", "f16"), ("bf16", "q8_0"), ("q8_0", "q8_0"), ("q8_0", "f32")]
# Heads of queries and of keys; the dims of keys, of values, and of what is rotated. There are halves of
# blocks, parts of warps, rows that are padded, and heads of which a part is not rotated.
SHAPES = [
    (8, 2, 128, 128, 128),
    (5, 3, 64, 80, 40),
    (3, 1, 12, 14, 8),
    (2, 2, 256, 32, 64),
    (1, 1, 44, 44, 24),
]


@pytest.mark.parametrize("neighbours", [True, False])
@pytest.mark.parametrize(("q_heads", "kv_heads", "key_dim", "value_dim", "dims"), SHAPES)
@pytest.mark.parametrize(("keys", "values"), KINDS)
def test_bits_are_those_of_rope_and_store(
    card: Card,
    keys: str,
    values: str,
    q_heads: int,
    kv_heads: int,
    key_dim: int,
    value_dim: int,
    dims: int,
    neighbours: bool,
) -> None:
    n, pages = 3, 2
    rng = np.random.default_rng(key_dim)
    sizes = (q_heads, key_dim), (kv_heads, key_dim), (kv_heads, value_dim)
    q, k, v = (rng.standard_normal((n, *size)).astype(np.float32) for size in sizes)
    before = [
        rng.standard_normal((pages, kv_heads, PAGE, d)).astype(np.float32) for d in (key_dim, value_dim)
    ]
    positions, slots = np.array([7, 0, 131_072], np.int32), np.array([64, 3, 127], np.int32)
    of_q = table(card, positions, frequencies_of(dims), (1.0, 0.5, 100.0))
    of_k = table(card, positions, frequencies_of(dims))
    want_q, want_k = rotate(card, q, of_q, k, of_k, dims, neighbours)
    cells = [card.array(pack(kind, x)) for kind, x in zip((keys, values), before, strict=True)]
    on_card = [card.array(x) for x in (q, k, v)]
    numbers = n, q_heads, kv_heads, key_dim, value_dim, dims, neighbours
    card.run(
        "rope_store.cu", "rope_store", *grids.rope_store(n, (q_heads, kv_heads), key_dim, value_dim, dims),
        [on_card[0], of_q, on_card[1], of_k, on_card[2], card.array(slots), *cells, *map(np.int32, numbers)],
        KEYS=keys.upper(), VALUES=values.upper(),
    )  # fmt: skip
    np.testing.assert_array_equal(card.read(on_card[0]), want_q)
    for kind, x, was, got in zip((keys, values), (want_k, v), before, cells, strict=True):
        was[slots // PAGE, :, slots % PAGE] = x
        np.testing.assert_array_equal(card.read(got), pack(kind, was))


def test_no_rows(card: Card) -> None:
    cells = [card.zeros(PAGE * row_bytes("f16", 64), np.uint8) for _ in range(2)]
    none = card.empty(64, np.float32)
    numbers = 0, 1, 1, 64, 64, 64, 0
    card.run(
        "rope_store.cu", "rope_store", *grids.rope_store(0, (1, 1), 64, 64, 64),
        [none, none, none, none, none, card.zeros(1, np.int32), *cells, *map(np.int32, numbers)],
        KEYS="F16", VALUES="F16",
    )  # fmt: skip
    assert np.isnan(card.read(none)).all()
    assert not any(card.read(kept).any() for kept in cells)


class Recorded:
    """A recorder, queries, keys and values of two tokens in it, and cells for them."""

    def __init__(self, card: Card, dim: int = 16, heads: int = 4, kv_heads: int = 2) -> None:
        self.device = Cuda(card.driver, "card")
        self.ops: CudaRecorder = self.device.recorder(Limits(2, 2, 1, 1))
        self.heads, self.kv_heads, self.dim, rng = heads, kv_heads, dim, np.random.default_rng(dim)
        self.rows = [rng.standard_normal((2, h, dim)).astype(np.float32) for h in (heads, kv_heads, kv_heads)]
        self.q, self.k, self.v = (self.ops.input(x[0].size) for x in self.rows)
        for buffer, x in zip((self.q, self.k, self.v), self.rows, strict=True):
            self.device.write(self.ops.place(buffer), x.reshape(2, -1))
        nbytes = kv_heads * PAGE * row_bytes("f32", dim)
        self.keys, self.values = (
            Cells(self.device.zeros(nbytes, "cells"), "f32", kv_heads, dim, PAGE) for _ in range(2)
        )

    def table(self, dims: int) -> Any:
        frequencies = self.device.vector(frequencies_of(dims))
        return self.ops.rope_table(frequencies, dims, 1.0, 0.0, 1.0)

    def record(self, table: Any, neighbours: bool = True) -> None:
        """As a layer does."""
        self.ops.rope(self.q, table, self.heads, neighbours)
        self.ops.rope(self.k, table, self.kv_heads, neighbours)
        self.ops.store(self.k, self.keys)
        self.ops.store(self.v, self.values)

    def run(self) -> list[str]:
        """Positions 5 and 6, in slots 9 and 8. The names of what was launched behind the tables."""

        def write(inputs: Inputs) -> None:
            inputs.counts[:] = (2, 0, 0)
            inputs.positions[:2], inputs.slots[:2] = (5, 6), (9, 8)

        program = self.ops.finish()
        self.ops.feed(write)
        names = [launch.name for launch in program.launches(self.ops.counts)]
        program.run()
        return [name for name in names if name != "rope_table"]

    def read(self, address: int, *shape: int) -> np.ndarray:
        out = np.empty(shape, np.float32)
        self.device.driver.download(out, address)
        self.device.stream.synchronize()
        return out

    def cells(self, cells: Cells) -> np.ndarray:
        """What the two tokens have there."""
        there = self.read(cells.memory.address, self.kv_heads, PAGE, row_bytes("f32", self.dim) // 4)
        return np.swapaxes(there[:, [9, 8], : self.dim], 0, 1)


@ONE_CARD
@pytest.mark.parametrize("neighbours", [True, False])
@pytest.mark.parametrize(
    ("dim", "dims", "names"),
    [(16, 16, ["rope_store"]), (16, 8, ["rope_store"]), (16, 4, ["rope", "store", "store"]),
     (14, 8, ["rope", "store", "store"])],
)  # fmt: skip
def test_a_layer(card: Card, dim: int, dims: int, names: list[str], neighbours: bool) -> None:
    r = Recorded(card, dim)
    r.record(r.table(dims), neighbours)
    assert r.run() == names
    angles = np.array([5.0, 6.0])[:, None] * frequencies_of(dims)
    turns = np.stack([np.cos(angles), np.sin(angles)], -1)
    q, k, v = r.rows
    got = r.read(r.ops.place(r.q).address, 2, r.heads, dim)
    np.testing.assert_allclose(got, rotated(q, turns, neighbours), atol=1e-5)
    np.testing.assert_allclose(r.cells(r.keys), rotated(k, turns, neighbours), atol=1e-5)
    np.testing.assert_array_equal(r.cells(r.values), v)


def other_dims(r: Recorded) -> None:
    one, two = r.table(16), r.table(8)
    r.ops.rope(r.q, one, r.heads, True)
    r.ops.rope(r.k, two, r.kv_heads, True)
    r.ops.store(r.k, r.keys)
    r.ops.store(r.v, r.values)


def other_pairs(r: Recorded) -> None:
    table = r.table(16)
    r.ops.rope(r.q, table, r.heads, True)
    r.ops.rope(r.k, table, r.kv_heads, False)


def rotated_twice(r: Recorded) -> None:
    table = r.table(16)
    r.ops.rope(r.q, table, r.heads, True)
    r.ops.rope(r.q, table, r.heads, True)


def three(r: Recorded) -> None:
    table = r.table(16)
    for x, heads in ((r.q, r.heads), (r.k, r.kv_heads), (r.v, r.kv_heads)):
        r.ops.rope(x, table, heads, True)


def values_first(r: Recorded) -> None:
    table = r.table(16)
    r.ops.rope(r.q, table, r.heads, True)
    r.ops.rope(r.k, table, r.kv_heads, True)
    r.ops.store(r.v, r.values)
    r.ops.store(r.k, r.keys)


def keys_are_values(r: Recorded) -> None:
    table = r.table(16)
    r.ops.rope(r.q, table, r.heads, True)
    r.ops.rope(r.k, table, r.kv_heads, True)
    r.ops.store(r.k, r.keys)
    r.ops.store(r.k, r.values)


def keys_alone(r: Recorded) -> None:
    r.ops.rope(r.k, r.table(16), r.kv_heads, True)
    r.ops.store(r.k, r.keys)
    r.ops.store(r.v, r.values)


@ONE_CARD
@pytest.mark.parametrize(
    ("record", "names"),
    [
        (other_dims, ["rope", "rope", "store", "store"]),
        (other_pairs, ["rope", "rope"]),
        (rotated_twice, ["rope", "rope"]),
        (three, ["rope", "rope"]),
        (values_first, ["rope", "store", "store"]),
        (keys_are_values, ["rope", "store", "store"]),
        (keys_alone, ["rope", "store", "store"]),
    ],
)
def test_what_one_launch_cannot_do(card: Card, record: Callable[[Recorded], None], names: list[str]) -> None:
    r = Recorded(card)
    record(r)
    assert r.run() == names


@ONE_CARD
@pytest.mark.parametrize(("after", "names"), [(1, "rope rope store store"), (2, "rope store store")])
def test_a_program_that_has_ended_is_not_changed(card: Card, after: int, names: str) -> None:
    r = Recorded(card)
    table, programs = r.table(16), []
    calls: list[Callable[[], None]] = [
        lambda: r.ops.rope(r.q, table, r.heads, True),
        lambda: r.ops.rope(r.k, table, r.kv_heads, True),
        lambda: r.ops.store(r.k, r.keys),
        lambda: r.ops.store(r.v, r.values),
    ]
    for part in (calls[:after], calls[after:]):
        for call in part:
            call()
        programs.append(r.ops.finish())
    launches = [x.name for program in programs for x in program.launches(r.ops.counts)]
    assert launches == ["rope_table", *names.split()]


@pytest.mark.parametrize(
    "model",
    [Tiny(layers=3), Tiny(arch="qwen3moe", head_norms=True, experts=4, experts_used=2, layers=3)],
    ids=["llama", "qwen3moe"],
)
@pytest.mark.cuda
def test_a_model_has_one_launch_a_layer(model: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    devices = cards(1)
    launched: list[str] = []
    (device,) = devices.values()
    assert isinstance(device, Cuda)
    launch = device.driver.launch

    def told(kernel: Kernel, *rest: Any) -> None:
        launched.append(kernel.name)
        launch(kernel, *rest)

    monkeypatch.setattr(device.driver, "launch", told)
    card = engine(model.write(tmp_path / "model.gguf"), devices, keys="q8_0", values="f16")
    for tokens in ([1], list(range(20))):
        launched.clear()
        card.decode(tokens)
        assert launched.count("rope_store") == 3
        assert not {"rope", "store"} & set(launched)
