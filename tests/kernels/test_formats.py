"""Every weight format against gguf-py's dequantize and numpy float64: random bytes, odd shapes."""

from itertools import product as product_of

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants
from gguf.constants import GGML_QUANT_SIZES

from ggrun.kernels import load_cpu

FORMATS = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "MXFP4"]
FORMATS += ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS", "TQ1_0", "TQ2_0"]
FORMATS += ["IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"]
# Where a block keeps its half-float scales: random bytes there would be infinities.
HALVES = {
    "Q4_0": [0],
    "Q4_1": [0, 2],
    "Q5_0": [0],
    "Q5_1": [0, 2],
    "Q8_0": [0],
    "Q2_K": [80, 82],
    "Q3_K": [108],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
    "IQ4_NL": [0],
    "IQ4_XS": [0],
    "TQ1_0": [52],
    "TQ2_0": [64],
    "IQ1_S": [0],
    "IQ2_XXS": [0],
    "IQ2_XS": [0],
    "IQ2_S": [0],
    "IQ3_XXS": [0],
    "IQ3_S": [0],
}


def random_rows(name: str, rows: int, k: int, rng: np.random.Generator) -> np.ndarray:
    """Rows of blocks with random bits and scales of a plausible size: uint8 [rows, bytes]."""
    if name in ("F32", "F16", "BF16"):
        values = rng.standard_normal((rows, k)).astype(np.float32)
        return quants.quantize(values, GGMLQuantizationType[name]).view(np.uint8).reshape(rows, -1)
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[name]]
    blocks = rng.integers(0, 256, (rows, k // block, size), np.uint8)
    for at in HALVES.get(name, []):
        scales = rng.uniform(-0.05, 0.05, (rows, k // block, 1)).astype(np.float16)
        blocks[:, :, at : at + 2] = scales.view(np.uint8)
    if name == "MXFP4":
        blocks[:, :, 0] = rng.integers(118, 130, blocks.shape[:2])
    if name == "IQ1_M":  # 1 / 64 to 1 / 8, in the top nibbles of the last four 16-bit words
        scale = rng.uniform(2**-6, 2**-3, blocks.shape[:2]).astype(np.float16).view(np.uint16)
        for i in range(4):
            high = blocks[:, :, 49 + 2 * i]
            high[:] = high & 15 | (scale >> (4 * i) & 15) << 4
    return blocks.reshape(rows, -1)


def exact(name: str, data: np.ndarray) -> np.ndarray:
    """gguf-py's word for the values: float64 [rows, k]."""
    return quants.dequantize(data, GGMLQuantizationType[name]).astype(np.float64)


def quantized(x: np.ndarray) -> np.ndarray:
    """Columns as kernels take them: float32 [columns, k] to bytes [superblocks, columns, SIZE]."""
    columns = load_cpu("columns")
    n, k = x.shape
    # Memory that was used before: its floats are no numbers.
    out = np.full((columns.column_bytes(k) // columns.SIZE, n, columns.SIZE), 255, np.uint8)
    count = np.array([n])
    args = columns.QUANTIZE.pack(n=count.ctypes.data, x=x.ctypes.data, y=out.ctypes.data, k=k)
    columns.quantize(args.ctypes.data, 0, 1)
    return out


def with_room(columns: np.ndarray) -> np.ndarray:
    """Columns, and behind them memory that kernels may read and must not use: its floats are no numbers."""
    column = columns.nbytes // max(1, columns.shape[-2]) or 1 << 16
    room = np.full(load_cpu("columns").ROOM * column, 255, np.uint8)
    return np.concatenate([columns.view(np.uint8).reshape(-1), room])


def parts(columns: np.ndarray, k: int) -> tuple[np.ndarray, ...]:
    """Of quantized columns: the bytes [n, k], scales [n, k/32], sums [n, k/32], half sums [n, k/16], and the
    whole numbers less sums [n, k/32] and less half sums [n, k/16], all as float64."""
    rows = np.ascontiguousarray(columns.transpose(1, 0, 2))
    n = len(rows)
    # Four vectors have four bytes of each half of a block, in this order of lanes.
    lanes = [[0, 2, 8, 10, 1, 3, 9, 11, 4, 6, 12, 14, 5, 7, 13, 15].index(h) for h in range(16)]

    def numbers(begin: int, end: int, kind: str) -> np.ndarray:
        return np.ascontiguousarray(rows[:, :, begin:end]).view(kind).astype(np.float64)

    def cut(values: np.ndarray, size: int) -> np.ndarray:
        return values.reshape(n, 256 // size * columns.shape[0])[:, : k // size]

    data = (
        numbers(0, 256, "i1").reshape(n, columns.shape[0], 4, 16, 4)[:, :, :, lanes].transpose(0, 1, 3, 2, 4)
    )
    scales = numbers(256, 320, "f4")[:, :, lanes]
    assert np.array_equal(scales[:, :, ::2], scales[:, :, 1::2], equal_nan=True)
    half_sums, less_half_sums = (
        numbers(at, at + 64, kind)[:, :, lanes] for at, kind in ((320, "f4"), (384, "i4"))
    )
    sums, less_sums = numbers(448, 480, "f4"), numbers(480, 512, "i4")
    return (
        cut(data, 1), cut(scales[:, :, ::2], 32), cut(sums, 32), cut(half_sums, 16), cut(less_sums, 32),
        cut(less_half_sums, 16),
    )  # fmt: skip


def values(columns: np.ndarray, k: int) -> np.ndarray:
    """What quantized columns stand for: float64 [columns, k]."""
    data, scales, *_ = parts(columns, k)
    return data * np.repeat(scales, 32, 1)


def product(name: str, data: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The kernel's [columns, rows] float32."""
    module = load_cpu(f"formats.{name.lower()}")
    n, k = x.shape
    small = module.COLUMNS == "q8"
    columns = with_room(quantized(x) if small else x)
    of_columns = load_cpu("columns")
    x_stride = of_columns.SIZE if small else 4 * k
    x_block = n * x_stride if small else 4 * of_columns.VALUES
    y = np.full((n, len(data)), np.nan, np.float32)
    task = load_cpu("formats.rows").MATMUL.pack(
        w=data.ctypes.data, w_stride=data.shape[1], rows=len(data), x=columns.ctypes.data, k=k,
        x_stride=x_stride, x_block=x_block, columns=n, y=y.ctypes.data, y_stride=y.strides[0],
    )  # fmt: skip
    module.matmul(task.ctypes.data)
    return y


@pytest.mark.parametrize("name", FORMATS)
def test_dequantize(name: str) -> None:
    data = random_rows(name, 5, 512, np.random.default_rng(1))
    want = exact(name, data)
    got = np.empty(want.shape, np.float32)
    for row, out in zip(data, got, strict=True):
        load_cpu(f"formats.{name.lower()}").dequantize(row.ctypes.data, 512, out.ctypes.data)
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6 * np.abs(want).max())


def test_every_power_of_two_of_mxfp4() -> None:
    data = random_rows("MXFP4", 251, 32, np.random.default_rng(3))
    data[:, 0] = np.arange(251)  # from subnormal numbers to where twelve times the scale is finite
    got = np.empty((251, 32), np.float32)
    load_cpu("formats.mxfp4").dequantize(data.ctypes.data, 251 * 32, got.ctypes.data)
    np.testing.assert_array_equal(got, exact("MXFP4", data))


@pytest.mark.parametrize("columns", [0, 1, 2, 3, 8, 9, 65])
@pytest.mark.parametrize("name", FORMATS)
def test_product(name: str, columns: int) -> None:
    rng = np.random.default_rng(2)
    block = GGML_QUANT_SIZES[GGMLQuantizationType[name]][0]
    shapes = [(1, 3 * block + 256 * (block == 1)), (7, 768), (150, 512 + 160 * (block <= 32))]
    for rows, k in [*shapes, (2, 1024 + 32 * (block <= 32))]:
        data = random_rows(name, rows, k, rng)
        x = rng.standard_normal((columns, k)).astype(np.float32)
        seen = values(quantized(x), k) if load_cpu(f"formats.{name.lower()}").COLUMNS == "q8" else x
        weights = exact(name, data)
        want = seen.astype(np.float64) @ weights.T
        got = product(name, data, x)
        assert got.shape == want.shape
        # Relative to |w| |x|, not to the product: one that cancels out to nearly nothing keeps its error.
        size = np.linalg.norm(seen) * np.linalg.norm(weights)
        assert np.linalg.norm(got - want) <= 1e-7 * size, (rows, k)


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in ("F32", "F16", "BF16")])
def test_the_largest_bytes(name: str) -> None:
    """Sums of products, with the largest of columns, must not overflow."""
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[name]]
    if load_cpu(f"formats.{name.lower()}").COLUMNS != "q8":
        pytest.skip("its products are floats")
    for fill in (0xFF, 0x00, 0x88, 0x77, 0x80, 0x7F, 0x08):
        blocks = np.full((70, 768 // block, size), fill, np.uint8)
        for at in HALVES.get(name, []):
            blocks[:, :, at : at + 2] = np.array([0.01], np.float16).view(np.uint8)
        if name == "MXFP4":
            blocks[:, :, 0] = 120
        data = blocks.reshape(70, -1)
        weights = exact(name, data)
        for sign, columns in product_of([1.0, -1.0], [1, 4, 23]):
            x = np.full((columns, 768), sign, np.float32)
            want = values(quantized(x), 768) @ weights.T
            room = 1e-6 * np.linalg.norm(x) * np.linalg.norm(weights) + 1e-30
            assert np.linalg.norm(product(name, data, x) - want) <= room, (hex(fill), sign, columns)
