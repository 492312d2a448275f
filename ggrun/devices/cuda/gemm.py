"""Products with many rows by cuBLAS: weights are dequantized to float16, rows of activations become float16.

float16 ends at 65504: weights are far below, and rows of activations that are not are scaled, see gemm.cu.
Of random values, such a product is 3e-4 off, in the root of the mean square; with columns of int8 it is
5e-3, with bfloat16 it would be 2e-3. F32 weights have more to lose and stay with tiles; so do experts, as
only the card knows how many rows each has.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ggrun.devices.base import Rows
from ggrun.devices.cuda import grids, matvec
from ggrun.devices.cuda.driver import Driver, Gemm
from ggrun.devices.cuda.memory import CudaWeight
from ggrun.devices.cuda.program import Counts, Launch, Work
from ggrun.devices.cuda.tiles import TWO_SCALES
from ggrun.kernels.code_books import format_defines

PIECES = (32 << 20, 128 << 20)
"""Bytes that weights are dequantized to at once: of few, cuBLAS finds most in a large second-level cache; of
many, each multiprocessor of a large card finds something to do. The card decides, see switch_over.py."""
_WHOLE = 128
"""Rows of weights that a piece has a multiple of, as the tiles of cuBLAS have."""
_EIGHTS = 8  # halves: 16 bytes


@dataclass(frozen=True)
class GemmFrom:
    """From how many rows on products are cuBLAS's, by what multiplies them else; 0: never, others exceed FEW.

    quantized    weights whose tiles are large where there is enough to do
    two_scales   those that have small tiles only: see tiles.py
    floats       F16 and BF16
    piece        bytes that weights are dequantized to at once, one of PIECES
    """

    quantized: int = 0
    two_scales: int = 0
    floats: int = 0
    piece: int = PIECES[0]

    def of(self, name: str) -> int:
        """For weights of a format."""
        if name in matvec.FLOATS:
            return 0 if name == "F32" else self.floats
        return self.two_scales if name in TWO_SCALES else self.quantized

    @property
    def least(self) -> int:
        """The fewest rows that a product of any weights is cuBLAS's from on; 0 where none ever is."""
        return min(filter(None, (self.quantized, self.two_scales, self.floats)), default=0)


def scratch_bytes(w: CudaWeight, piece: int) -> int:
    """What dequantized weights need: F16 is what is multiplied."""
    return 0 if w.format == "F16" else max(min(piece, 2 * w.rows * w.columns), 2 * w.columns)


def halves_bytes(k: int) -> int:
    """The bytes of a row of float16: see kernels/cuda/gemm.cu."""
    return 2 * (-(-k // _EIGHTS) * _EIGHTS + _EIGHTS)


@dataclass(frozen=True)
class ToHalves:
    """A step: x[n, k] to float16, where n is so large that a product may want it."""

    driver: Driver
    over: Rows
    x: int
    k: int
    halves: int
    least: int

    def __call__(self, counts: Counts) -> list[Work]:
        """One launch, or none."""
        n = counts.rows(self.over)
        if n < self.least:
            return []
        kernel = self.driver.kernel("gemm.cu", "to_halves")
        return [Launch(kernel, *grids.to_halves(n), (self.x, self.halves, np.int32(self.k), np.int32(n)))]


@dataclass(frozen=True)
class ByGemm:
    """How a Linear multiplies `least` rows or more.

    halves    where the rows are as float16
    scratch   where weights are dequantized to, `piece` bytes at once; 0: they need not be
    """

    least: int
    halves: int
    scratch: int
    piece: int

    def works(
        self, driver: Driver, w: CudaWeight, y: int, n: int, scale: float, bias: int, residual: int
    ) -> list[Work]:
        """y[n, rows] = x . w^T * scale + bias, or its sum with `residual`, written there."""
        works: list[Work] = []
        for part, first in pieces(w, self.piece):
            if self.scratch:
                works.append(self._dequantize(driver, part))
            sizes = n, part.rows, w.columns, halves_bytes(w.columns) // 2, w.rows
            works.append(Gemm(self.halves, self.scratch or part.address, y + 4 * first, *sizes, scale))
        kernel = driver.kernel("gemm.cu", "finish")
        args = y, self.halves, bias, residual, *map(np.int32, (w.columns, n, w.rows))
        return [*works, Launch(kernel, *grids.rows(n, w.rows), args)]

    def _dequantize(self, driver: Driver, w: CudaWeight) -> Launch:
        count, defines = w.rows * w.columns, format_defines(w.format)
        kernel = driver.kernel("dequantize.cu", "dequantize", OUTPUT="f16", **defines)
        return Launch(kernel, *matvec.dequantize_shape(count), (w.address, self.scratch, np.int64(count)))


def pieces(w: CudaWeight, piece: int) -> Iterator[tuple[CudaWeight, int]]:
    """The rows that are multiplied at once, about equally many, and the first one's number."""
    size = w.rows
    if 2 * w.rows * w.columns > piece and w.format != "F16":
        most = scratch_bytes(w, piece) // (2 * w.columns)
        most = most // _WHOLE * _WHOLE or most
        even = -(-w.rows // -(-w.rows // most))
        size = min(most, -(-even // _WHOLE) * _WHOLE)
    for first in range(0, w.rows, size):
        yield w.cut((first, min(first + size, w.rows))), first
