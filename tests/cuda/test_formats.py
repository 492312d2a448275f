"""kernels/cuda/formats and dequantize.cu against gguf-py: random blocks, and those with extreme scales."""

from pathlib import Path

import numpy as np
import pytest

from ggrun.devices.cuda.matvec import FLOATS, dequantize_shape, embed_shape
from ggrun.kernels.code_books import format_defines
from tests.cuda.conftest import AMPERE, TURING, Card
from tests.cuda.weights import FORMATS, HALVES, exact, extreme_rows, random_rows, whole_words
from tests.thinned import diagonal

GROUP = str(Path(__file__).parent / "group.cu")
QUANTIZED = [name for name in FORMATS if name not in FLOATS]
OUTPUTS = {"f32": np.float32, "f16": np.float16}
# What takes a module of its own a format is run by one card.
one_card = pytest.mark.parametrize("card", ["750-reverse"], indirect=True)


@pytest.mark.parametrize("kernel", ["by_group", "by_unit"])
@pytest.mark.parametrize(("card", "name"), diagonal(TURING + AMPERE, QUANTIZED), indirect=["card"])
def test_every_format_by_group_and_unit(card: Card, name: str, kernel: str) -> None:
    cases = [random_rows(name, 3, 768, np.random.default_rng(1))]
    if name in HALVES:
        cases.append(extreme_rows(name, 256))
    for data in cases:
        want = exact(name, data)
        rows, k = want.shape
        y = card.empty(want.shape, np.float32)
        args = [card.array(whole_words(data)), y, np.int32(k), np.int32(rows)]
        card.run(GROUP, kernel, -(-want.size // 1024), 32, args, **format_defines(name))
        assert (np.abs(card.read(y) - want) <= 1e-6 * np.abs(want).max(1, keepdims=True)).all()


@one_card
def test_every_power_of_two_of_mxfp4(card: Card) -> None:
    data = random_rows("MXFP4", 251, 32, np.random.default_rng(3))
    data[:, 0] = np.arange(251)  # from subnormal numbers to where twelve times the scale is finite
    y = card.empty((251, 32), np.float32)
    args = [card.array(whole_words(data)), y, np.int64(251 * 32)]
    defines = {**format_defines("MXFP4"), "OUTPUT": "f32"}
    card.run("dequantize.cu", "dequantize", *dequantize_shape(251 * 32), args, **defines)
    got, want = card.read(y), exact("MXFP4", data)
    if card.flushes:
        want[:2] = np.where(got[:2] == 0, 0, want[:2])  # their scales are subnormal
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    ("card", "what"),
    diagonal(TURING + AMPERE, [f"{name} f16" for name in FORMATS] + ["Q4_0 f32", "F16 f32"]),
    indirect=["card"],
)
def test_every_format_dequantized(card: Card, what: str) -> None:
    name, output = what.split()
    defines = {**format_defines(name), "OUTPUT": output}
    for rows, k in ((0, 256), (1, 256), (5, 3 * 256), (40, 512)):
        data = random_rows(name, rows + 1, k, np.random.default_rng(rows))
        want = exact(name, data)[:rows]
        y = card.empty((rows + 1, k), OUTPUTS[output])
        args = [card.array(whole_words(data)), y, np.int64(rows * k)]
        card.run("dequantize.cu", "dequantize", *dequantize_shape(rows * k), args, **defines)
        got = card.read(y)
        error = {"f32": 1e-6, "f16": 2**-11}[output]
        np.testing.assert_allclose(got[:rows].astype(np.float64), want, rtol=error, atol=2**-24)
        assert (got[rows:].view(np.uint8) == 0xFF).all()  # nothing is written behind the last row


@pytest.mark.parametrize("name", ["Q4_K", "Q8_0", "F16", "F32", "IQ3_S"])
@pytest.mark.parametrize("k", [256, 4096 + 256])
def test_embed(card: Card, name: str, k: int) -> None:
    data = random_rows(name, 9, k, np.random.default_rng(4))
    for tokens in ([], [8], [3, 0, 8, 3]):
        which = np.array(tokens, np.int32)
        y = card.empty((len(tokens), k), np.float32)
        args = [card.array(which), card.array(whole_words(data)), y, np.int32(k), np.int32(len(tokens))]
        defines = {**format_defines(name), "OUTPUT": "f32"}
        card.run("dequantize.cu", "embed", *embed_shape(k, len(tokens)), args, **defines)
        np.testing.assert_allclose(card.read(y), exact(name, data)[which], rtol=1e-6, atol=1e-7)


@one_card
@pytest.mark.parametrize("name", FLOATS)
def test_floats_of_odd_width(card: Card, name: str) -> None:
    data = random_rows(name, 3, 7, np.random.default_rng(6))
    y = card.empty((3, 7), np.float32)
    args = [
        card.array(np.arange(3, dtype=np.int32)),
        card.array(whole_words(data)),
        y,
        np.int32(7),
        np.int32(3),
    ]
    card.run("dequantize.cu", "embed", *embed_shape(7, 3), args, **format_defines(name), OUTPUT="f32")
    np.testing.assert_array_equal(card.read(y), exact(name, data))
