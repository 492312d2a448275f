"""kernels/cuda/attention_*.cu against numpy float64, over the values that the cache's cells really have.

Pages lie in any order, cells that were never written are full of numbers that are none.
"""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from ggrun.devices.cuda.attention import AttentionLaunch, Shape, bucket, counter_bytes, plan_attention
from tests.cuda.conftest import Card
from tests.cuda.kv import PAGE, Floats, Options, attention, kept, pack
from tests.cuda.weights import column_bytes, quantized
from tests.thinned import diagonal

ONE_ORDER = pytest.mark.parametrize("card", ["750-forward", "800-random"], indirect=True)
BAR = 1e-5


@dataclass
class Case:
    """Some tokens of each sequence, at the end of what it has: `lengths` and `tokens`, a number each."""

    shape: Shape
    lengths: list[int]
    tokens: list[int]
    options: Options = field(default_factory=Options)
    loud: float = 1.0  # how much larger queries are
    soft: float = 1.0  # and scores smaller
    seed: int = 0

    def __post_init__(self) -> None:
        self.rng, s = np.random.default_rng(self.seed), self.shape
        self.keys = [self._normal(s.kv_heads, n, s.key_dim) for n in self.lengths]
        self.values = [self._normal(s.kv_heads, n, s.value_dim) + np.float32(0.5) for n in self.lengths]
        ranges = [np.arange(n - m, n) for n, m in zip(self.lengths, self.tokens, strict=True)]
        self.positions = np.concatenate(ranges).astype(np.int32)
        self.sequences = np.repeat(np.arange(len(self.lengths)), self.tokens).astype(np.int32)
        self.q = self._normal(len(self.positions), s.heads, s.key_dim) * np.float32(self.loud)
        stride = max(-(-n // PAGE) for n in self.lengths) + 1
        self.tables = self.rng.permutation(stride * len(self.lengths)).reshape(-1, stride).astype(np.int32)

    @property
    def scale(self) -> float:
        return self.shape.key_dim**-0.5 / self.soft

    def _normal(self, *shape: int) -> Floats:
        return self.rng.standard_normal(shape).astype(np.float32)

    def cells(self, kind: str, rows: list[Floats]) -> np.ndarray:
        """The cache with all sequences in it."""
        heads, _, dim = rows[0].shape
        cells = np.zeros((self.tables.size, heads, PAGE, dim), np.float32)
        unused = np.ones((self.tables.size, PAGE), bool)
        for table, x in zip(self.tables, rows, strict=True):
            for i in range(x.shape[1]):
                cells[table[i // PAGE], :, i % PAGE] = x[:, i]
                unused[table[i // PAGE], i % PAGE] = False
        return _spoil(kind, pack(kind, cells), unused, heads)

    def reference(self) -> np.ndarray:
        keys, values = ([kept(k, x) for x in rows] for k, rows in self._kinds())
        want = [
            attention(q.astype(np.float64), keys[i], values[i], p, self.scale, self.options)
            for q, i, p in zip(self.q, self.sequences, self.positions, strict=True)
        ]
        return np.stack(want)

    def _kinds(self) -> list[tuple[str, list[Floats]]]:
        return [(self.shape.key_kind, self.keys), (self.shape.value_kind, self.values)]

    def run(self, card: Card, launch: AttentionLaunch, n: int | None = None) -> np.ndarray:
        return self.run_all(card, launch, n).y

    def run_all(self, card: Card, launch: AttentionLaunch, n: int | None = None, times: int = 1) -> "Written":
        """The kernel so many times over, with the same counters; then attention_combine, of several parts."""
        s, n = self.shape, len(self.q) if n is None else n
        y = card.empty((len(self.q), s.heads, s.value_dim), np.float32)
        sums, states = (card.empty(max(size, 4) // 4, np.float32) for size in launch.scratch(s, len(self.q)))
        columns = card.empty((len(self.q), column_bytes(s.heads * s.value_dim)), np.uint8)
        arrived = card.zeros(launch.grid[0] * launch.grid[1], np.uint32)
        keys, values = (card.array(self.cells(kind, rows)) for kind, rows in self._kinds())
        sinks = 0 if self.options.sinks is None else card.array(self.options.sinks)
        arrays = [card.array(x) for x in (self.positions, self.sequences, self.tables)]
        numbers = [np.int32(x) for x in (n, s.heads, s.kv_heads, self.tables.shape[1], s.window)]
        floats = [np.float32(self.scale), np.float32(self.options.cap)]
        args = [card.array(self.q), y, sums, states, *arrays, keys, values, sinks, *numbers, *floats]
        if launch.combines:
            args += [columns if s.value_dim % 32 == 0 else 0, arrived]
        for _ in range(times):
            card.run(
                launch.file, launch.name, launch.grid, launch.block, args, launch.shared, **launch.defines
            )
        assert not card.read(arrived).any()
        combined = card.empty(y.shape, np.float32) if launch.combines else y
        if launch.parts > 1:
            rest = [np.int32(x) for x in (n * s.heads, s.heads, launch.parts, s.value_dim)]
            args = [sums, states, sinks, combined, *rest]
            card.run("attention_combine.cu", "attention_combine", max(1, n * s.heads), 128, args)
        return Written(card.read(y), card.read(columns), card.read(combined))


@dataclass(frozen=True)
class Written:
    """What a run leaves: y, its columns, and what attention_combine makes of the same parts."""

    y: np.ndarray
    columns: np.ndarray
    combined: np.ndarray


def _spoil(kind: str, cells: np.ndarray, unused: np.ndarray, heads: int) -> np.ndarray:
    """Ones in all bits of what was never written: NaN in floats."""
    tiles = np.repeat(unused, heads, 0)
    size = cells.shape[1] // PAGE
    if kind == "q8_0":
        width = size * 32 // 34
        scales = cells[:, PAGE * width :].view(np.uint16).reshape(len(cells), -1, PAGE)
        scales[np.broadcast_to(tiles[:, None], scales.shape)] = 0xFFFF
        size = width
    cells[:, : PAGE * size].reshape(len(cells), PAGE, size)[tiles] = 0xFF
    return cells


def error(got: np.ndarray, want: np.ndarray) -> float:
    """The largest difference, relative to the root mean square of what should be there."""
    return float(np.abs(got - want).max() / np.sqrt((want**2).mean()))


def check(card: Card, case: Case, launch: AttentionLaunch, bar: float = BAR) -> None:
    assert error(case.run(card, launch), case.reference()) <= bar


def shape(
    heads: int = 4, kv_heads: int = 2, dims: tuple[int, int] = (64, 64), kind: str = "f16", **more: int
) -> Shape:
    return Shape(heads, kv_heads, *dims, kind, kind, **more)


def plan(card: Card, case: Case, multiprocessors: int = 1) -> AttentionLaunch:
    return plan_attention(
        case.shape, len(case.q), len(case.lengths), max(case.lengths), card.arch // 10, multiprocessors
    )


def in_parts(launch: AttentionLaunch, parts: int) -> AttentionLaunch:
    return replace(launch, parts=parts, grid=(*launch.grid[:2], parts))


def sinks(heads: int) -> Floats:
    return np.linspace(-2, 6, heads).astype(np.float32)


DECODE = {
    "one position": Case(shape(), [1], [1]),
    "one page and a bit": Case(shape(), [65], [1]),
    "eight tokens of one sequence": Case(shape(heads=8, kv_heads=8), [70], [8]),
    "tokens of three sequences": Case(shape(), [130, 1, 64], [2, 1, 3]),
    "groups of seven": Case(shape(14, 2), [100], [2]),
    "groups of eight": Case(shape(8, 1, (128, 128)), [150], [1]),
    "one group of twelve": Case(shape(12, 1), [90], [1]),
    "large queries": Case(shape(), [200], [2], loud=8),
    "queries that no half holds": Case(shape(), [100], [1], loud=1e6, soft=1e6),
    "queries that are next to nothing": Case(shape(), [100], [1], loud=1e-8, soft=1e-8),
    "queries of zeros": Case(shape(), [100], [1], loud=0),
    "dims of 80": Case(shape(dims=(80, 80)), [70], [1]),
    "dims of 96": Case(shape(dims=(96, 96)), [70], [1]),
    "dims of 192 and 128": Case(shape(dims=(192, 128)), [70], [1]),
    "dims of 256": Case(shape(dims=(256, 256)), [70], [1]),
    "odd dims": Case(shape(dims=(14, 22)), [70], [3]),
    "a window": Case(shape(window=40), [150, 30], [2, 2], Options(window=40)),
    "a window of one": Case(shape(window=1), [66], [2], Options(window=1)),
    "a cap": Case(shape(capped=True), [100], [2], Options(cap=5.0), loud=5),
    "sinks": Case(shape(), [100], [2], Options(sinks=sinks(4))),
}
PREFILL = {
    "one sequence from its beginning": Case(shape(), [100], [100]),
    "two sequences of a hundred": Case(shape(2, 1), [120, 150], [110, 103]),
    "in the middle, groups of seven": Case(shape(14, 2), [200], [30]),
    "groups of one": Case(shape(2, 2), [140], [70]),
    "groups of eight": Case(shape(8, 1, (128, 128)), [90], [20]),
    "a group larger than a block": Case(shape(100, 1, (4, 2)), [70], [10]),
    "many short sequences": Case(shape(), [5, 70, 3, 1, 66], [4, 3, 3, 1, 2]),
    "large queries": Case(shape(), [200], [40], loud=8),
    "queries that no half holds": Case(shape(), [100], [20], loud=1e6, soft=1e6),
    "queries that are next to nothing": Case(shape(), [100], [20], loud=1e-8, soft=1e-8),
    "dims of 80": Case(shape(dims=(80, 80)), [70], [20]),
    "dims of 96": Case(shape(dims=(96, 96)), [70], [20]),
    "dims of 192 and 128": Case(shape(dims=(192, 128)), [70], [20]),
    "dims of 256": Case(shape(dims=(256, 256)), [70], [20]),
    "odd dims": Case(shape(dims=(14, 22)), [70], [20]),
    "a window": Case(shape(window=40), [150, 50], [60, 30], Options(window=40)),
    "a cap": Case(shape(capped=True), [100], [20], Options(cap=5.0), loud=5),
    "sinks": Case(shape(), [100], [20], Options(sinks=sinks(4))),
}


@pytest.mark.parametrize("case", DECODE.values(), ids=DECODE)
def test_decode(card: Card, case: Case) -> None:
    launch = in_parts(plan(card, case), 1)
    assert launch.name == "attention_decode"
    check(card, case, launch)


@pytest.mark.parametrize("case", PREFILL.values(), ids=PREFILL)
def test_prefill(card: Card, case: Case) -> None:
    launch = in_parts(plan(card, case), 1)
    assert launch.name == "attention_prefill"
    check(card, case, launch)


@pytest.mark.parametrize("name", ["tokens of three sequences", "a window", "sinks", "odd dims"])
def test_decode_in_parts(card: Card, name: str) -> None:
    """More parts than pages, too."""
    case = DECODE[name]
    for parts in (2, 3, 5):
        check(card, case, in_parts(plan(card, case), parts))


@pytest.mark.parametrize("parts", [1, 2, 9, 40])
@pytest.mark.parametrize(
    "name", ["groups of seven", "one group of twelve", "dims of 192 and 128", "odd dims"]
)
def test_the_last_block_combines(card: Card, name: str, parts: int) -> None:
    """The bits of attention_combine, and columns of these; every launch leaves the counters as they were."""
    case = DECODE[name]
    got = case.run_all(card, in_parts(plan(card, case), parts), times=2)
    assert error(got.y, case.reference()) <= BAR
    if parts > 1:
        np.testing.assert_array_equal(got.y, got.combined)
    if case.shape.value_dim % 32 == 0:
        rows = got.y.reshape(len(got.y), -1)
        np.testing.assert_array_equal(got.columns, quantized(rows))


@pytest.mark.parametrize(
    "name", ["in the middle, groups of seven", "many short sequences", "a window", "sinks"]
)
def test_prefill_in_parts(card: Card, name: str) -> None:
    case = PREFILL[name]
    check(card, case, in_parts(plan(card, case), 3))


@pytest.mark.parametrize(
    ("keys", "values"), diagonal(("f16", "f32", "bf16", "q8_0"), ("f32", "bf16", "q8_0"))
)
@ONE_ORDER
def test_kinds_of_cells(card: Card, keys: str, values: str) -> None:
    kinds = Shape(4, 2, 64, 96, keys, values)
    for tokens, multiprocessors in ((1, 1), (3, 50), (20, 1)):
        case = Case(kinds, [150], [tokens], loud=3)
        check(card, case, plan(card, case, multiprocessors))


@pytest.mark.parametrize("tokens", [8, 40])
@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0"])
@ONE_ORDER
def test_queries_and_weights_keep_their_bits(card: Card, kind: str, tokens: int) -> None:
    """Two parts of bfloat16 would be 3e-6 off, one half 3e-4."""
    case = Case(shape(kind=kind), [100], [tokens])
    check(card, case, plan(card, case), 1.5e-6)


@pytest.mark.parametrize("case", [DECODE["a window"], PREFILL["a window"]], ids=["decode", "prefill"])
@ONE_ORDER
def test_an_empty_batch_and_tokens_behind_it(card: Card, case: Case) -> None:
    launch, want = plan(card, case), case.reference()
    assert np.isnan(case.run(card, launch, n=0)).all()
    fewer = len(want) - 1
    got = case.run(card, launch, n=fewer)
    assert error(got[:fewer], want[:fewer]) <= BAR
    assert np.isnan(got[fewer:]).all()


@pytest.mark.parametrize("tokens", [2, 20])
@ONE_ORDER
def test_the_same_twice(card: Card, tokens: int) -> None:
    case = Case(shape(), [300], [tokens])
    launch = in_parts(plan(card, case), 3)
    np.testing.assert_array_equal(case.run(card, launch), case.run(card, launch))


@pytest.mark.parametrize("kind", ["bf16", "f32"])
@pytest.mark.parametrize("card", ["750-forward"], indirect=True)
def test_what_turing_has_no_room_for_is_cut_off(card: Card, kind: str) -> None:
    if card.arch != 750:
        pytest.skip("it has more room")
    case = Case(shape(kind=kind), [40], [1])
    case.values[0][:, 3, 5] = 1e6
    got = case.run(card, plan(card, case))
    case.values[0][:, 3, 5] = 65504
    case.shape = replace(case.shape, value_kind="f32")
    assert error(got, case.reference()) <= BAR


def test_plans() -> None:
    """Decode where a sequence has few tokens, parts where blocks are few, no more memory than there is."""
    big = Shape(32, 8, 128, 128, "f16", "f16")
    one = plan_attention(big, 1, 1, 4096, 90, 132)
    assert (one.name, one.grid, one.parts) == ("attention_decode", (8, 1, 32), 32)
    assert one.scratch(big, 1) == (32 * 32 * 128 * 4, 32 * 32 * 8)
    assert plan_attention(big, 1, 1, 100, 90, 132).parts == 1
    assert plan_attention(replace(big, window=128), 1, 1, 4096, 90, 132).parts == 2
    assert plan_attention(big, 30, 30, 4096, 90, 132).name == "attention_decode"
    assert plan_attention(replace(big, value_kind="f32"), 100, 1, 4096, 90, 132).name == "attention_decode"
    many = plan_attention(big, 512, 1, 512, 90, 132)
    assert (many.name, many.grid, many.block, many.shared) == (
        "attention_prefill", (8, 32, 1), (128,), 48 << 10
    )  # fmt: skip
    assert many.scratch(big, 512) == (0, 0)
    assert plan_attention(big, 16, 1, 8192, 90, 132).parts == 16
    for dims in ((64, 64), (80, 80), (128, 128), (192, 128), (256, 256)):
        for kind in ("f16", "bf16", "q8_0"):
            for arch, most in ((75, 64), (86, 99)):
                wide = Shape(8, 2, *dims, kind, kind)
                assert plan_attention(wide, 64, 1, 64, arch, 68).shared <= most << 10


@pytest.mark.parametrize("multiprocessors", [1, 4, 132])
def test_each_tile_with_parts_has_a_counter(multiprocessors: int) -> None:
    for heads, kv_heads in ((1, 1), (32, 8), (71, 1), (64, 64)):
        for n in range(1, 40):
            of_tokens = Shape(heads, kv_heads, 64, 64, "f16", "f16")
            launch = plan_attention(of_tokens, n, n, 1 << 17, 90, multiprocessors)
            assert launch.combines
            tiles = launch.grid[0] * launch.grid[1]
            assert launch.parts == 1 or 4 * tiles <= counter_bytes(multiprocessors)


def test_buckets() -> None:
    assert [bucket(n) for n in (1, 64, 65, 128, 129, 5000)] == [64, 64, 128, 128, 256, 8192]
