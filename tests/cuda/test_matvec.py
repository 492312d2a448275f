"""kernels/cuda/matvec.cu against float64 products of gguf-py's weights with the very same columns."""

import numpy as np
import pytest

from ggrun.devices.cuda.matvec import FLOATS, experts_shape, matvec_defines, matvec_shape, merged_shape
from tests.cuda.conftest import AMPERE, TURING, Card
from tests.cuda.weights import FORMATS, HALVES, exact, quantized, random_rows, values, whole_words
from tests.thinned import diagonal

one_card = pytest.mark.parametrize("card", ["750-reverse"], indirect=True)


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


class Case:
    """Weights and columns: as kernels take them, and as float64."""

    def __init__(self, name: str, rows: int, k: int, n: int, experts: int = 1, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.name, self.rows, self.k, self.n = name, rows, k, n
        self.data = random_rows(name, experts * rows, k, rng)
        self.weights = exact(name, self.data).reshape(experts, rows, k)
        x = rng.standard_normal((n, k)).astype(np.float32)
        self.columns = x if name in FLOATS else quantized(x)
        self.x = x.astype(np.float64) if name in FLOATS else values(self.columns, k)

    def product(self) -> np.ndarray:
        return self.x @ self.weights[0].T

    def size(self) -> np.ndarray:
        """What sums may err in proportion to: they may cancel out, their terms do not."""
        return np.abs(self.x) @ np.abs(self.weights[0]).T

    def run(self, card: Card, scale: float = 1.0, **vectors: np.ndarray) -> np.ndarray:
        y = card.empty((self.n, self.rows), np.float32)
        args = [card.array(whole_words(self.data)), card.array(self.columns), y]
        args += [np.int32(self.rows), np.int32(self.k), np.int32(self.n), np.float32(scale)]
        args += [card.array(vectors[v]) if v in vectors else 0 for v in ("bias", "residual")]
        shape = matvec_shape(self.name, self.rows, self.k, self.n, multiprocessors=16)
        card.run("matvec.cu", "matvec", *shape, args, **matvec_defines(self.name, self.n))
        return card.read(y)

    def check(self, card: Card) -> None:
        assert (np.abs(self.run(card) - self.product()) <= 2e-6 * self.size()).all()


@pytest.mark.parametrize(("card", "name"), diagonal(AMPERE + TURING, FORMATS), indirect=["card"])
def test_every_format_with_one_column(card: Card, name: str) -> None:
    """Or none."""
    Case(name, 1, 256, 1).check(card)
    Case(name, 7, 3 * 256, 1).check(card)
    Case(name, 7, 256, 0).check(card)


@pytest.mark.parametrize(("card", "name"), diagonal(TURING + AMPERE, FORMATS), indirect=["card"])
def test_every_format_with_many_columns(card: Card, name: str) -> None:
    Case(name, 1, 256, 5).check(card)
    Case(name, 11, 2 * 256, 8).check(card)
    Case(name, 3, 256, 513).check(card)


@pytest.mark.parametrize("name", ["Q4_K", "Q6_K", "Q4_0", "BF16"])
@pytest.mark.parametrize("k", [4096 + 256, 17 * 1024])
def test_warps_that_share_rows(card: Card, name: str, k: int) -> None:
    assert matvec_shape(name, 9, k, 1, 16).block[1] > 1
    Case(name, 9, k, 1).check(card)


@pytest.mark.parametrize("n", [0, 2, 3, 4, 17])
def test_numbers_of_columns(card: Card, n: int) -> None:
    Case("Q4_K", 70, 512, n).check(card)
    Case("F16", 3, 512, n).check(card)


@pytest.mark.parametrize("card", ["800-random"], indirect=True)
@pytest.mark.parametrize("name", ["Q4_0", "Q5_0", "Q8_0", "IQ4_NL", "MXFP4", "Q4_1", "Q5_1"])
def test_a_single_block(card: Card, name: str) -> None:
    """Rows that begin at every alignment that a format has."""
    Case(name, 5, 32, 1).check(card)
    Case(name, 4, 96, 3).check(card)


@one_card
@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("k", [1, 7, 100])
def test_floats_of_odd_width(card: Card, name: str, k: int) -> None:
    Case(name, 3, k, 1).check(card)
    Case(name, 3, k, 6).check(card)


@one_card
@pytest.mark.parametrize("fill", [0xFF, 0x00, 0x88, 0x77, 0x80, 0x7F])
@pytest.mark.parametrize("name", ["Q4_K", "Q6_K", "Q3_K", "Q5_0", "Q8_0", "IQ4_NL", "TQ2_0"])
def test_the_largest_bytes(card: Card, name: str, fill: int) -> None:
    case = Case(name, 3, 512, 1)
    blocks = case.data.reshape(3 * 512 // (32 if name in ("Q5_0", "Q8_0", "IQ4_NL") else 256), -1)
    blocks[:] = fill
    for at in HALVES[name]:
        blocks[:, at : at + 2] = np.array([0.01], np.float16).view(np.uint8)
    case.weights = exact(name, case.data).reshape(1, 3, 512)
    case.columns = quantized(np.full((1, 512), -1, np.float32))
    case.x = values(case.columns, 512)
    case.check(card)


def test_scale_bias_and_residual(card: Card) -> None:
    case, rng = Case("Q4_K", 37, 256, 3), np.random.default_rng(1)
    bias = rng.standard_normal(37).astype(np.float32)
    residual = rng.standard_normal((3, 37)).astype(np.float32)
    size = case.size() + np.abs(bias) + np.abs(residual)
    got = case.run(card, 0.75, bias=bias)
    assert (np.abs(got - (case.product() * 0.75 + bias)) <= 2e-6 * size).all()
    got = case.run(card, 0.75, bias=bias, residual=residual)
    assert (np.abs(got - (case.product() * 0.75 + bias + residual)) <= 2e-6 * size).all()


def test_the_same_bits_every_time(card: Card) -> None:
    case = Case("Q6_K", 20, 5 * 1024, 2)
    np.testing.assert_array_equal(case.run(card), case.run(card))


@pytest.mark.parametrize("n", [1, 3, 8])
@pytest.mark.parametrize(("rows", "k"), [(1, 256), (45, 512), (6, 9 * 1024)])
def test_swiglu(card: Card, rows: int, k: int, n: int) -> None:
    case, rng = Case("Q4_K", 2 * rows, k, n), np.random.default_rng(1)
    case.weights *= 0.05
    gate_bias, up_bias = rng.standard_normal((2, rows)).astype(np.float32)
    g, u = np.split(case.product(), 2, axis=1)
    g, u = 0.5 * g + gate_bias, 2.0 * u + up_bias
    half = len(case.data) // 2
    y = card.empty((n, rows), np.float32)
    args = [
        card.array(whole_words(case.data[:half])),
        card.array(whole_words(case.data[half:])),
        card.array(case.columns),
        y,
    ]
    args += [np.int32(rows), np.int32(k), np.int32(n), np.float32(0.5 * 0.05), np.float32(2.0 * 0.05)]
    args += [card.array(gate_bias), card.array(up_bias)]
    card.run(
        "matvec.cu",
        "matvec_swiglu",
        *matvec_shape("Q4_K", rows, k, n, 16, matrices=2),
        args,
        **matvec_defines("Q4_K", n),
    )
    error = np.linalg.norm(card.read(y) - silu(g) * u)
    assert error <= 1e-5 * np.linalg.norm(silu(g) * u)


@pytest.mark.parametrize("name", ["Q4_K", "Q6_K", "Q8_0", "F16"])
@pytest.mark.parametrize("rows", [(33, 8, 5), (1, 40), (130, 64, 64)])
@pytest.mark.parametrize("n", [0, 1, 3, 8])
def test_products_in_one_launch(card: Card, name: str, rows: tuple[int, ...], n: int) -> None:
    """Each has its own rows, scale and bias; of two, the third is not there."""
    k, rng = 512, np.random.default_rng(n)
    cases = [Case(name, count, k, n, seed=n) for count in rows]  # the same columns
    for case in cases[1:]:
        case.x, case.columns = cases[0].x, cases[0].columns
    biases = [rng.standard_normal(count).astype(np.float32) for count in rows]
    scales, missing = (0.5, 2.0, -1.0)[: len(rows)], [0] * (3 - len(rows))
    y = [card.empty((n, count), np.float32) for count in rows]
    args = [
        *(card.array(whole_words(case.data)) for case in cases), *missing, card.array(cases[0].columns),
        *y, *missing, *map(np.int32, (*rows, *missing)), np.int32(k), np.int32(n),
        *map(np.float32, (*scales, *missing)),
        card.array(biases[0]), 0, *map(card.array, biases[2:]), *missing,
    ]  # fmt: skip
    shape = merged_shape(name, rows, k, n, 16)
    card.run("matvec.cu", "matvec_merged", *shape, args, **matvec_defines(name, n))
    biases[1][:] = 0.0
    for case, there, scale, bias in zip(cases, y, scales, biases, strict=True):
        error = np.abs(card.read(there) - (scale * case.product() + bias))
        assert (error <= 2e-6 * (np.abs(scale) * case.size() + np.abs(bias))).all()


def routed(experts: int, tokens: int, used: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """starts [experts + 1], each pair's token and expert, sorted by expert; some experts have nobody."""
    rng = np.random.default_rng(experts)
    chosen = np.array([rng.choice(experts // 2, used, replace=False) * 2 for _ in range(tokens)]).ravel()
    order = np.argsort(chosen, kind="stable")
    starts = np.searchsorted(chosen[order], np.arange(experts + 1)).astype(np.int32)
    return starts, (order // used).astype(np.int32), chosen[order].astype(np.int64)


@pytest.mark.parametrize("name", ["Q4_K", "MXFP4", "F32"])
@pytest.mark.parametrize(("experts", "tokens"), [(4, 1), (70, 3)])
@pytest.mark.parametrize("spread", [False, True])
def test_experts(card: Card, name: str, experts: int, tokens: int, spread: bool) -> None:
    rows, k = 13, 256
    case = Case(name, rows, k, tokens, experts)
    starts, token, expert = routed(experts, tokens, 2)
    pairs = len(token)
    columns = np.ascontiguousarray(case.columns[token]) if spread else case.columns
    scales = np.random.default_rng(2).uniform(0.5, 2, experts).astype(np.float32)
    y = card.empty((pairs, rows), np.float32)
    args = [card.array(whole_words(case.data)), card.array(columns), y, card.array(starts)]
    args += [0 if spread else card.array(token), np.int32(experts), np.int32(rows), np.int32(k)]
    args += [np.int32(pairs), 0 if spread else card.array(scales)]
    card.run(
        "matvec.cu",
        "matvec_experts",
        *experts_shape(name, rows, k, pairs, 16),
        args,
        **matvec_defines(name, 1),
    )
    weights = case.weights[expert] * (1 if spread else scales[expert, None, None])
    want = np.einsum("prk,pk->pr", weights, case.x[token])
    size = np.einsum("prk,pk->pr", np.abs(weights), np.abs(case.x[token]))
    assert (np.abs(card.read(y) - want) <= 2e-6 * size).all()


@pytest.mark.parametrize("tokens", [0, 1, 4])
def test_experts_swiglu(card: Card, tokens: int) -> None:
    experts, rows, k = 8, 21, 512
    gate, up = Case("Q4_0", rows, k, tokens, experts, seed=1), Case("Q4_0", rows, k, tokens, experts, seed=2)
    starts, token, expert = routed(experts, tokens, 3)
    pairs = len(token)
    scales = np.random.default_rng(2).uniform(0.5, 2, (2, experts)).astype(np.float32)
    y = card.empty((pairs, rows), np.float32)
    args = [
        card.array(whole_words(gate.data)),
        card.array(whole_words(up.data)),
        card.array(gate.columns),
        y,
        card.array(starts),
    ]
    args += [card.array(token), np.int32(experts), np.int32(rows), np.int32(k), np.int32(pairs)]
    args += [card.array(scales[0]), card.array(scales[1])]
    shape = experts_shape("Q4_0", rows, k, pairs, 16, matrices=2)
    card.run("matvec.cu", "matvec_experts_swiglu", *shape, args, **matvec_defines("Q4_0", 1))
    g, u = (
        np.einsum("prk,pk->pr", w.weights[expert], gate.x[token]) * scales[i, expert, None]
        for i, w in enumerate((gate, up))
    )
    assert np.linalg.norm(card.read(y) - silu(g) * u) <= 1e-5 * np.linalg.norm(silu(g) * u)
