"""Which kernels multiply weights with rows: those of decoding for a few, those of prompts for many."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from ggrun.devices.base import Rows
from ggrun.devices.cuda import matvec
from ggrun.devices.cuda.driver import Driver
from ggrun.devices.cuda.memory import CudaWeight
from ggrun.devices.cuda.program import FEW, Counts, Launch, Step
from ggrun.devices.cuda.tiles import Tiles, expert_tiles, float_tiles, matmul_tiles

_ALIGNMENT = 16  # bytes: where quantized columns begin
_SUMMED = 256  # rows that a block of sum_splits adds up


class Products:
    """Steps of products on one card. Addresses are of float32 rows, or of quantized columns."""

    def __init__(self, driver: Driver) -> None:
        self._driver, self._multiprocessors = driver, driver.multiprocessors

    # ---------------------------------------------------------------- what is multiplied

    def quantized(self, w: CudaWeight) -> bool:
        """Whether a weight's products want quantized columns, and not floats."""
        return w.format not in matvec.FLOATS

    def column_bytes(self, k: int) -> int:
        """The bytes of a quantized column: see kernels/cuda/columns.cuh."""
        return -(-(k + k // 32 * 8) // _ALIGNMENT) * _ALIGNMENT

    def quantize(self, over: Rows, x: int, k: int, columns: int) -> Step:
        """Rows of k floats to columns."""
        kernel = self._driver.kernel("columns.cu", "quantize")

        def step(counts: Counts) -> list[Launch]:
            n = counts.rows(over)
            return [Launch(kernel, *matvec.quantize_shape(k, n), (x, columns, np.int32(k), np.int32(n)))]

        return step

    def embed(self, table: CudaWeight, tokens: int, y: int) -> Step:
        """Rows of a table, as floats."""
        k, defines = table.columns, matvec.format_defines(table.format)
        kernel = self._driver.kernel("dequantize.cu", "embed", **defines, OUTPUT="float")

        def step(counts: Counts) -> list[Launch]:
            args = tokens, table.address, y, np.int32(k), np.int32(counts.tokens)
            return [Launch(kernel, *matvec.embed_shape(k, counts.tokens), args)]

        return step

    # ---------------------------------------------------------------- products

    def scratch_bytes(self, w: CudaWeight, most: int) -> int:
        """What `linear` needs for the parts of its sums, with up to so many rows."""
        splits = ((n, self._tiles(w, n).splits) for n in range(FEW + 1, most + 1))
        return 4 * w.rows * max((n * parts for n, parts in splits if parts > 1), default=0)

    def linear(
        self, over: Rows, x: int, w: CudaWeight, y: int, scale: float, bias: int, scratch: int
    ) -> Step:
        """y = x . w^T * scale + bias."""
        few = partial(self._matvec, x, w, y, scale, bias)
        many = partial(self._matmul, x, w, y, scale, bias, scratch)

        def step(counts: Counts) -> Sequence[Launch]:
            n = counts.rows(over)
            return few(n) if n <= FEW else many(n)

        return step

    def experts(self, x: int, w: CudaWeight, y: int, starts: int, scales: int) -> Step:
        """Each pair's row times its expert's matrix; pairs are sorted by expert."""
        few = partial(self._matvec_experts, x, w, y, starts, scales)
        many = partial(self._matmul_experts, x, w, y, starts, scales)

        def step(counts: Counts) -> Sequence[Launch]:
            return few(counts.pairs) if counts.tokens <= FEW else many(counts.pairs)

        return step

    # ---------------------------------------------------------------- with a few columns

    def _matvec(self, x: int, w: CudaWeight, y: int, scale: float, bias: int, n: int) -> list[Launch]:
        kernel = self._driver.kernel("matvec.cu", "matvec", **matvec.matvec_defines(w.format, n))
        shape = matvec.matvec_shape(w.rows, w.columns, n, self._multiprocessors)
        args = w.address, x, y, *_sizes(w), np.int32(n), np.float32(scale), bias, 0
        return [Launch(kernel, *shape, args)]

    def _matvec_experts(
        self, x: int, w: CudaWeight, y: int, starts: int, scales: int, pairs: int
    ) -> list[Launch]:
        kernel = self._driver.kernel("matvec.cu", "matvec_experts", **matvec.matvec_defines(w.format, 1))
        shape = matvec.experts_shape(w.rows, w.columns, pairs, self._multiprocessors)
        args = w.address, x, y, starts, 0, np.int32(w.experts), *_sizes(w), np.int32(pairs), scales
        return [Launch(kernel, *shape, args)]

    # ---------------------------------------------------------------- with many

    def _tiles(self, w: CudaWeight, n: int) -> Tiles:
        if self.quantized(w):
            return matmul_tiles(w.format, w.rows, w.columns, n, self._multiprocessors)
        return float_tiles(w.rows, w.columns, n, self._multiprocessors)

    def _matmul(
        self, x: int, w: CudaWeight, y: int, scale: float, bias: int, scratch: int, n: int
    ) -> list[Launch]:
        tiles = self._tiles(w, n)
        if tiles.splits == 1:
            return [self._tiled("matmul", w, tiles, (x, np.int32(n), y, np.float32(scale), bias))]
        parts = self._tiled("matmul", w, tiles, (x, np.int32(n), scratch, np.float32(1.0), 0))
        adding = self._driver.kernel("split_k.cu", "sum_splits")
        numbers = np.int32(tiles.splits), np.int32(n), np.int32(w.rows)
        grid = -(-w.rows // _SUMMED), n
        return [parts, Launch(adding, grid, (_SUMMED,), (scratch, *numbers, y, np.float32(scale), bias))]

    def _matmul_experts(
        self, x: int, w: CudaWeight, y: int, starts: int, scales: int, pairs: int
    ) -> list[Launch]:
        args = x, starts, np.int32(w.experts), 0, y, scales
        return [self._tiled("matmul", w, expert_tiles(w.rows, pairs, w.experts), args, "_experts")]

    def _tiled(self, family: str, w: CudaWeight, tiles: Tiles, args: tuple[Any, ...], of: str = "") -> Launch:
        name, defines = family, {"TILE_ROWS": tiles.rows, "TILE_COLUMNS": tiles.columns}
        if not self.quantized(w):
            name, defines = f"{family}_floats", {"TILE_COLUMNS": tiles.columns}
        kernel = self._driver.kernel(f"{name}.cu", name + of, **matvec.format_defines(w.format), **defines)
        return Launch(kernel, tiles.grid, (tiles.block,), (w.address, *_sizes(w), *args))


def _sizes(w: CudaWeight) -> tuple[np.int32, np.int32]:
    """The rows, and the values of one."""
    return np.int32(w.rows), np.int32(w.columns)
