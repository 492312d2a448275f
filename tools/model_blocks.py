"""Random weights made directly as the bytes of a format: random bits, with scales of the right size."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ggrun.gguf.types import Format

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where a block of a format has its scales (float16); any other bits of it are good ones."""

    scale: int  # byte offset
    spread: float  # standard deviation of the weights of random blocks whose scale is 1
    minimum: int | None = None  # byte offset
    ratio: float = 0.0  # minimum / scale for which the mean is 0
    signed: bool = False  # the scale may be negative, which also hides that the range is not symmetric


_LAYOUTS = {
    "Q4_0": _Layout(0, 4.61, signed=True),
    "Q4_1": _Layout(0, 4.61, 2, -7.5),
    "Q5_0": _Layout(0, 9.23, signed=True),
    "Q5_1": _Layout(0, 9.23, 2, -15.5),
    "Q8_0": _Layout(0, 73.9),
    "Q2_K": _Layout(80, 13.9, 82, 1.5),
    "Q3_K": _Layout(108, 43.4, signed=True),
    "Q4_K": _Layout(0, 258.0, 2, 7.5),
    "Q5_K": _Layout(0, 528.0, 2, 15.5),
    "Q6_K": _Layout(208, 1370.0, signed=True),
    "IQ1_S": _Layout(0, 7.19),
    "IQ2_XXS": _Layout(0, 53.4),
    "IQ2_XS": _Layout(0, 56.2),
    "IQ2_S": _Layout(0, 56.2),
    "IQ3_XXS": _Layout(0, 143.0),
    "IQ3_S": _Layout(0, 140.0),
    "IQ4_NL": _Layout(0, 67.2, signed=True),
    "IQ4_XS": _Layout(0, 1250.0, signed=True),
    "TQ1_0": _Layout(52, 0.817),
    "TQ2_0": _Layout(64, 0.817),
}
_IQ1_M_SPREAD, _MXFP4_SPREAD = 7.22, 5.85

# Bytes of four numbers from 0 to 2, all of them (nearly) equally often.
_TRITS = np.array([i for i in range(256) if all(i >> s & 3 < 3 for s in (0, 2, 4, 6))], np.uint8)
_TRITS = _TRITS[np.arange(256) * len(_TRITS) // 256]
_FACTORS = np.linspace(0.5, 1.5, 256) / math.sqrt(13 / 12)  # what scales differ by: their mean square is 1


class Weights:
    """An endless stream of random weights of a format, of mean 0 and standard deviation `std`."""

    def __init__(self, format: Format, std: float, seed: tuple[int, ...]) -> None:
        self._format, self._std = format, std
        self._rng = np.random.Generator(np.random.SFC64(seed))
        self._floats = self._normal() if format.block == 1 else None

    def draw(self, n: int) -> NDArray[np.uint8 | np.uint16 | np.float32]:
        """The next n weights, which must be whole blocks; an array of bytes, or of numbers of their size."""
        if self._floats is not None:
            return self._floats.take(self._bits(2 * n).view(np.uint16)[:n], mode="clip")
        blocks = n // self._format.block
        drawn = self._bits(blocks * self._format.size)[: blocks * self._format.size]
        self._repair(drawn.reshape(blocks, self._format.size))
        return drawn

    def _bits(self, n: int) -> Bytes:
        return self._rng.integers(0, 1 << 64, -(-n // 8), np.uint64).view(np.uint8)

    def _normal(self) -> NDArray[np.uint16 | np.float32]:
        values = (self._rng.standard_normal(1 << 16) * self._std).astype(np.float32)
        if self._format.name == "BF16":
            return ((values.view(np.uint32) + 0x8000) >> 16).astype(np.uint16)
        return values if self._format.name == "F32" else values.astype(np.float16).view(np.uint16)

    def _repair(self, blocks: Bytes) -> None:
        """Write scales into blocks of random bits; which ones, the bits in their places decide."""
        if self._format.name == "MXFP4":
            blocks[:, 0] = self._exponents()[blocks[:, 0]]
        elif self._format.name == "IQ1_M":
            self._repair_iq1_m(blocks)
        else:
            self._repair_scaled(blocks, _LAYOUTS[self._format.name])

    def _repair_scaled(self, blocks: Bytes, layout: _Layout) -> None:
        scales = _FACTORS * self._std / layout.spread
        if layout.signed:
            scales[::2] *= -1
        choice = blocks[:, layout.scale].copy()
        blocks[:, layout.scale : layout.scale + 2] = _halves(scales)[choice]
        if layout.minimum is not None:
            blocks[:, layout.minimum : layout.minimum + 2] = _halves(scales * layout.ratio)[choice]
        if self._format.name == "TQ2_0":
            blocks[:, :64] = _TRITS[blocks[:, :64]]

    def _repair_iq1_m(self, blocks: Bytes) -> None:
        # The four upper bits of each of the four 16-bit words at the end are, together, the scale.
        halves = (_FACTORS * self._std / _IQ1_M_SPREAD).astype(np.float16).view(np.uint16)
        quarters = ((halves[:, None] >> np.arange(0, 16, 4) & 15) << 4).astype(np.uint8)
        upper = blocks[:, 49::2]
        upper[:] = (upper & 15) | quarters[blocks[:, 0]]

    def _exponents(self) -> Bytes:
        """Powers of two (biased by 128 here), of which as many are the greater one as the spread asks for."""
        size = math.log2(self._std / _MXFP4_SPREAD)
        low = math.floor(size)
        greater = (4 ** (size - low) - 1) / 3
        return (128 + low + (np.arange(256) < 256 * greater)).astype(np.uint8)


def _halves(values: NDArray[np.float64]) -> Bytes:
    return values.astype("<f2").view(np.uint8).reshape(-1, 2)
