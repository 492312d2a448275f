"""kernels/cuda/store.cu: rows into the KV cache."""

import numpy as np
import pytest

from ggrun.devices.cuda.attention import row_bytes
from tests.cuda.conftest import Card
from tests.cuda.kv import PAGE, pack

KINDS = ["f32", "f16", "bf16", "q8_0"]


def run_store(card: Card, kind: str, x: np.ndarray, slots: np.ndarray, cells: object) -> None:
    n, heads, dim = x.shape
    grid = max(1, -(-n * heads // 4))
    args = [card.array(x), card.array(slots), cells, np.int32(n), np.int32(heads), np.int32(dim)]
    card.run("store.cu", "store", grid, 128, args, KIND=kind.upper())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("heads", "dim"), [(2, 128), (1, 14), (3, 80), (1, 256)])
def test_rows_are_where_they_belong(card: Card, kind: str, heads: int, dim: int) -> None:
    rng = np.random.default_rng(1)
    x = (rng.standard_normal((70, heads, dim)) * rng.choice([1e-3, 1, 300], (70, heads, dim))).astype(
        np.float32
    )
    x[3] = 0
    slots = rng.permutation(3 * PAGE)[:70].astype(np.int32)
    before = rng.standard_normal((3, heads, PAGE, dim)).astype(np.float32)
    cells = card.array(pack(kind, before))
    assert cells.shape[1] == PAGE * row_bytes(kind, dim)
    run_store(card, kind, x, slots, cells)
    before[slots // PAGE, :, slots % PAGE] = x
    np.testing.assert_array_equal(card.read(cells), pack(kind, before))


@pytest.mark.parametrize("kind", KINDS)
def test_no_rows(card: Card, kind: str) -> None:
    cells = card.zeros(PAGE * row_bytes(kind, 32), np.uint8)
    run_store(card, kind, np.zeros((0, 1, 32), np.float32), np.zeros(0, np.int32), cells)
    assert not card.read(cells).any()


def test_blocks_too_small_for_a_scale_are_zeros(card: Card) -> None:
    x = np.full((1, 1, 32), 1e-39, np.float32)
    cells = card.zeros(PAGE * row_bytes("q8_0", 32), np.uint8)
    run_store(card, "q8_0", x, np.zeros(1, np.int32), cells)
    assert card.read(cells)[PAGE * 32 :].view(np.float16)[0] == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_stays_none(card: Card, kind: str, odd: float) -> None:
    x = np.ones((1, 1, 32), np.float32)
    x[0, 0, 7] = odd
    cells = card.zeros(PAGE * row_bytes(kind, 32), np.uint8)
    run_store(card, kind, x, np.zeros(1, np.int32), cells)
    got = card.read(cells)
    if kind == "q8_0":  # the scale carries it on
        assert not np.isfinite(got[PAGE * 32 :].view(np.float16)[0])
    else:
        dtype = {"f32": np.float32, "f16": np.float16, "bf16": np.uint16}[kind]
        rows = got.view(dtype).astype(np.uint32) << 16 if kind == "bf16" else got.view(dtype)
        value = rows[7:8].view(np.float32)[0] if kind == "bf16" else rows[7]
        np.testing.assert_equal(float(value), odd)
