"""What multiplies weights with rows: kernels of decoding for a few, tiles for more, cuBLAS for very many."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ggrun.devices.base import Rows
from ggrun.devices.cuda import grids, matvec
from ggrun.devices.cuda.driver import Driver, Kernel
from ggrun.devices.cuda.gemm import ByGemm
from ggrun.devices.cuda.memory import CudaWeight
from ggrun.devices.cuda.program import FEW, Counts, Launch, Work
from ggrun.devices.cuda.tiles import Tiles, expert_tiles, float_tiles, matmul_tiles
from ggrun.kernels.code_books import format_defines

COLUMN_BLOCK = 32
"""Values that have a scale of their own in a quantized column."""

_ALIGNMENT = 16  # bytes: where quantized columns begin
_SUMMED = 256  # rows that a block of sum_splits adds up


def quantized(w: CudaWeight) -> bool:
    """Whether a weight's products want quantized columns, and not floats."""
    return w.format not in matvec.FLOATS


def column_bytes(k: int) -> int:
    """The bytes of a quantized column: see kernels/cuda/columns.cuh."""
    return -(-(k + k // COLUMN_BLOCK * 8) // _ALIGNMENT) * _ALIGNMENT


def scratch_bytes(w: CudaWeight, most: int, multiprocessors: int) -> int:
    """What `Linear` needs for the parts of its sums, with up to so many rows."""
    splits = ((n, _tiles(w, n, multiprocessors).splits) for n in range(FEW + 1, most + 1))
    return 4 * w.rows * max((n * parts for n, parts in splits if parts > 1), default=0)


@dataclass
class Quantize:
    """A step: rows of floats to quantized columns, where they are as few as products of ours have at most."""

    driver: Driver
    over: Rows
    x: int
    k: int
    columns: int
    most: int = 0

    def __call__(self, counts: Counts) -> Sequence[Work]:
        """One launch, or none."""
        if (n := counts.rows(self.over)) > self.most:
            return []
        kernel, shape = self.driver.kernel("columns.cu", "quantize"), matvec.quantize_shape(self.k, n)
        return [Launch(kernel, *shape, (self.x, self.columns, np.int32(self.k), np.int32(n)))]


@dataclass(frozen=True)
class Linear:
    """A step: y = x . w^T * scale + bias (+ residual). x: columns as w wants them; 0: there is none.

    by_gemm    what cuBLAS needs, where it is ever the faster one
    """

    driver: Driver
    over: Rows
    x: int
    w: CudaWeight
    y: int
    scale: float
    bias: int
    scratch: int
    by_gemm: ByGemm | None = None
    residual: int = 0

    def __call__(self, counts: Counts) -> Sequence[Work]:
        """The launches."""
        n = counts.rows(self.over)
        if n <= FEW:
            return [self._few(n)]
        if self.by_gemm and n >= self.by_gemm.least:
            after = self.scale, self.bias, self.residual
            return self.by_gemm.works(self.driver, self.w, self.y, n, *after)
        return self._many(n)

    def onto(self, residual: int) -> "Linear":
        """The same, added to what lies at `residual` and written there."""
        return replace(self, residual=residual)

    def _few(self, n: int) -> Launch:
        w, driver = self.w, self.driver
        kernel = driver.kernel("matvec.cu", "matvec", **matvec.matvec_defines(w.format, n))
        shape = matvec.matvec_shape(w.format, w.rows, w.columns, n, driver.multiprocessors)
        after = np.float32(self.scale), self.bias, self.residual
        return Launch(
            kernel, *shape, (w.address, self.x, self.residual or self.y, *_sizes(w), np.int32(n), *after)
        )

    def _many(self, n: int) -> list[Launch]:
        tiles = _tiles(self.w, n, self.driver.multiprocessors)
        kernel = _tiled(self.driver, self.w, tiles, "")
        after, read = (
            (np.float32(self.scale), self.bias),
            (self.w.address, *_sizes(self.w), self.x, np.int32(n)),
        )
        if tiles.splits == 1:
            launches = [Launch(kernel, tiles.grid, (tiles.block,), (*read, self.y, *after))]
        else:
            parts = Launch(kernel, tiles.grid, (tiles.block,), (*read, self.scratch, np.float32(1.0), 0))
            sizes = np.int32(tiles.splits), np.int32(n), np.int32(self.w.rows)
            adding, grid = self.driver.kernel("split_k.cu", "sum_splits"), (-(-self.w.rows // _SUMMED), n)
            launches = [parts, Launch(adding, grid, (_SUMMED,), (self.scratch, *sizes, self.y, *after))]
        return launches if not self.residual else [*launches, self._added(n)]

    def _added(self, n: int) -> Launch:
        total = n * self.w.rows
        kernel = self.driver.kernel("rows.cu", "add")
        return Launch(kernel, *grids.elements(total), (self.y, self.residual, np.int64(total)))


@dataclass(frozen=True)
class Experts:
    """A step: each pair's row times its expert's matrix; pairs are sorted by expert, as `starts` says."""

    driver: Driver
    x: int
    w: CudaWeight
    y: int
    starts: int
    scales: int

    def __call__(self, counts: Counts) -> Sequence[Launch]:
        """The launches."""
        return [self._few(counts.pairs) if counts.tokens <= FEW else self._many(counts.pairs)]

    def _few(self, pairs: int) -> Launch:
        w, driver = self.w, self.driver
        kernel = driver.kernel("matvec.cu", "matvec_experts", **matvec.matvec_defines(w.format, 1))
        shape = matvec.experts_shape(w.format, w.rows, w.columns, pairs, driver.multiprocessors)
        read = w.address, self.x, self.y, self.starts, 0, np.int32(w.experts)
        return Launch(kernel, *shape, (*read, *_sizes(w), np.int32(pairs), self.scales))

    def _many(self, pairs: int) -> Launch:
        w, tiles = self.w, expert_tiles(self.w.rows, pairs, self.w.experts)
        kernel = _tiled(self.driver, w, tiles, "_experts")
        read = w.address, *_sizes(w), self.x, self.starts, np.int32(w.experts), 0
        return Launch(kernel, tiles.grid, (tiles.block,), (*read, self.y, self.scales))


@dataclass(frozen=True)
class SwiGLU:
    """A step: silu(gate) * up, of two products of the same rows, to where gate's would be."""

    gate: Linear | Experts
    up: Linear | Experts

    def __call__(self, counts: Counts) -> Sequence[Work]:
        """The launches: one for a few tokens, which never writes the products."""
        if counts.tokens <= FEW:
            return [self._few(counts)]
        over = self.gate.over if isinstance(self.gate, Linear) else Rows.PAIRS
        a, b, total = self.gate.y, self.up.y, counts.rows(over) * self.gate.w.rows
        kernel = self.gate.driver.kernel("activation.cu", "activate_gated", ACTIVATION="silu")
        activated = Launch(kernel, *grids.elements(total), (a, b, a, np.int64(total)))
        return [*self.gate(counts), *self.up(counts), activated]

    @staticmethod
    def of(gate: Any, up: Any) -> "SwiGLU | None":
        """Of two steps, if they are such products."""
        same = type(gate) is type(up) and isinstance(gate, Linear | Experts)
        if same and gate.x == up.x and gate.w.format == up.w.format:
            return SwiGLU(gate, up)
        return None

    def _few(self, counts: Counts) -> Launch:
        gate, up, driver, w = self.gate, self.up, self.gate.driver, self.gate.w
        matrices = gate.w.address, up.w.address, gate.x, gate.y
        if isinstance(gate, Linear) and isinstance(up, Linear):
            n = counts.rows(gate.over)
            kernel = driver.kernel("matvec.cu", "matvec_swiglu", **matvec.matvec_defines(w.format, n))
            shape = matvec.matvec_shape(w.format, w.rows, w.columns, n, driver.multiprocessors, matrices=2)
            scales = np.float32(gate.scale), np.float32(up.scale), gate.bias, up.bias
            return Launch(kernel, *shape, (*matrices, *_sizes(w), np.int32(n), *scales))
        assert isinstance(gate, Experts)
        assert isinstance(up, Experts)
        kernel = driver.kernel("matvec.cu", "matvec_experts_swiglu", **matvec.matvec_defines(w.format, 1))
        shape = matvec.experts_shape(
            w.format, w.rows, w.columns, counts.pairs, driver.multiprocessors, matrices=2
        )
        sizes = np.int32(w.experts), *_sizes(w), np.int32(counts.pairs)
        return Launch(kernel, *shape, (*matrices, gate.starts, 0, *sizes, gate.scales, up.scales))


def _tiles(w: CudaWeight, n: int, multiprocessors: int) -> Tiles:
    if quantized(w):
        return matmul_tiles(w.format, w.rows, w.columns, n, multiprocessors)
    return float_tiles(w.rows, w.columns, n, multiprocessors)


def _tiled(driver: Driver, w: CudaWeight, tiles: Tiles, of: str) -> Kernel:
    defines = {"TILE_COLUMNS": tiles.columns, **format_defines(w.format)}
    if not quantized(w):
        return driver.kernel("matmul_floats.cu", "matmul_floats" + of, **defines)
    return driver.kernel("matmul.cu", "matmul" + of, **defines, TILE_ROWS=tiles.rows)


def _sizes(w: CudaWeight) -> tuple[np.int32, np.int32]:
    """The rows, and the values of one."""
    return np.int32(w.rows), np.int32(w.columns)
