"""Kernels touch nothing beyond what they are given: pages before and behind it cannot be read or written."""

import ctypes
import mmap
import sys

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.constants import GGML_QUANT_SIZES

from ggrun.kernels import load_cpu
from tests.kernels.test_formats import exact, parts, random_rows

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs mprotect")
ROOM = 7
"""Columns that products may read beyond the last; said here again, so that it cannot grow unseen."""


class Memory:
    """Blocks that end, or begin, at a page that cannot be touched."""

    def __init__(self, at_end: bool) -> None:
        self._at_end, self._kept = at_end, []

    def take(self, nbytes: int) -> np.ndarray:
        """Bytes that were used before: as floats they are no numbers."""
        page = mmap.PAGESIZE
        whole = -(-nbytes // page) * page
        self._kept.append(mmap.mmap(-1, whole + 2 * page))
        block = np.frombuffer(self._kept[-1], np.uint8)
        for guard in (block.ctypes.data, block.ctypes.data + page + whole):
            assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(guard), page, 0) == 0
        begin = page + (whole - nbytes if self._at_end else 0)
        block[begin : begin + nbytes] = 255
        return block[begin : begin + nbytes]

    def put(self, values: np.ndarray) -> np.ndarray:
        """A copy of some bytes."""
        block = self.take(values.nbytes)
        block[:] = np.ascontiguousarray(values).view(np.uint8).reshape(-1)
        return block


def quantized_among(
    memory: Memory, x: np.ndarray, first: int, all_columns: int
) -> tuple[np.ndarray, np.ndarray]:
    """Columns as some of many, with room behind them; and what they stand for."""
    columns = load_cpu("columns")
    n, k = x.shape
    superblocks = columns.column_bytes(k) // columns.SIZE
    source, small, count = memory.put(x), memory.take(n * superblocks * columns.SIZE), np.array([n])
    args = columns.QUANTIZE.pack(n=count.ctypes.data, x=source.ctypes.data, y=small.ctypes.data, k=k)
    columns.quantize(args.ctypes.data, 0, 1)
    small = small.reshape(superblocks, n, columns.SIZE)
    among = memory.take((all_columns + ROOM) * superblocks * columns.SIZE)
    whole = among[: all_columns * superblocks * columns.SIZE].reshape(superblocks, all_columns, columns.SIZE)
    whole[:, first : first + n] = small
    data, scales, *_ = parts(small, k)
    return among, data * np.repeat(scales, 32, 1)


def floats_among(
    memory: Memory, x: np.ndarray, first: int, all_columns: int
) -> tuple[np.ndarray, np.ndarray]:
    n, k = x.shape
    among = memory.take((all_columns + ROOM) * 4 * k)
    among[: 4 * k * all_columns].view(np.float32).reshape(all_columns, k)[first : first + n] = x
    return among, x.astype(np.float64)


CASES = [(n, 0, n) for n in (1, 2, 3, 8, 19, 21, 66)] + [(1, 3, 7), (4, 3, 7), (21, 30, 53)]
"""Columns; the first of them among all; how many there are."""


@pytest.mark.parametrize("at_end", [True, False])
@pytest.mark.parametrize(
    "name", ["F32", "F16", "Q4_0", "Q8_0", "MXFP4", "Q4_K", "Q5_K", "Q6_K", "Q2_K", "Q3_K"]
)
def test_nothing_else_is_touched(name: str, at_end: bool) -> None:
    block = GGML_QUANT_SIZES[GGMLQuantizationType[name]][0]
    module, columns = load_cpu(f"formats.{name.lower()}"), load_cpu("columns")
    assert columns.ROOM == ROOM
    small, rng = module.COLUMNS == "q8", np.random.default_rng(5)
    for k in {1: [17, 530], 32: [32, 480, 512], 256: [256, 512]}[block]:
        for rows in (1, 7, 65):
            rows_of = random_rows(name, rows, k, rng)
            weights = exact(name, rows_of)
            for n, first, all_columns in CASES:
                memory, x = Memory(at_end), rng.standard_normal((n, k)).astype(np.float32)
                data = memory.put(rows_of)
                among, seen = (quantized_among if small else floats_among)(memory, x, first, all_columns)
                y, x_stride = memory.take(4 * n * rows), columns.SIZE if small else 4 * k
                task = load_cpu("formats.rows").MATMUL.pack(
                    w=data.ctypes.data, w_stride=rows_of.shape[1], rows=rows, k=k, columns=n,
                    x=among.ctypes.data + first * x_stride, x_stride=x_stride,
                    x_block=all_columns * x_stride if small else 4 * columns.VALUES,
                    y=y.ctypes.data, y_stride=4 * rows,
                )  # fmt: skip
                module.matmul(task.ctypes.data)
                got = y.view(np.float32).reshape(n, rows)
                room = 1e-7 * np.linalg.norm(seen) * np.linalg.norm(weights)
                assert np.linalg.norm(got - seen @ weights.T) <= room, (k, rows, n, first, all_columns)
            memory = Memory(at_end)
            out, data = memory.take(4 * k), memory.put(rows_of)
            module.dequantize(data.ctypes.data + (rows - 1) * rows_of.shape[1], k, out.ctypes.data)
            np.testing.assert_allclose(out.view(np.float32), weights[-1], rtol=1e-6, atol=1e-6)
