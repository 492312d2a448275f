"""From how many rows on cuBLAS is faster on a card, and with what pieces of weights: measured once, kept by
the card's name and our kernels.

Not by its number: all cards of a kind in a machine round alike, so that a text does not tell which of them
computed it. Another machine may find other numbers.
"""

import json
from dataclasses import asdict, replace
from hashlib import sha256

import numpy as np

from ggrun.devices.base import Inputs, Limits, Rows
from ggrun.devices.cuda.device import Cuda
from ggrun.devices.cuda.driver import Driver
from ggrun.devices.cuda.gemm import PIECES, GemmFrom
from ggrun.devices.cuda.program import FEW
from ggrun.devices.cuda.recorder import CudaRecorder
from ggrun.devices.kept import Kept
from ggrun.devices.speeds import least_seconds, made_up
from ggrun.kernels import cuda_state

_ROWS = (64, 128, 256, 512, 1024, 2048)
_PROMPT = 512
"""Rows that pieces are chosen for: as many as a micro-batch has where nothing else is said."""
_MATRIX = 8192
_KINDS = {"quantized": "Q4_K", "two_scales": "Q6_K", "floats": "F16"}
"""A format for each of the numbers of GemmFrom, in their order: the one that most models have."""
_TILES, _GEMM = GemmFrom(), GemmFrom(FEW + 1, FEW + 1, FEW + 1)
_PRODUCTS, _TIMES = 4, 5  # one after the other, and how often that is timed


def measured_gemm(device: Cuda) -> GemmFrom:
    """Of a card that has cuBLAS. A few seconds, as kernels have to be compiled."""
    products = [_Product(device, kind) for kind in _KINDS.values()]
    piece = min(PIECES, key=lambda nbytes: products[0].seconds(_PROMPT, replace(_GEMM, piece=nbytes)))
    by = replace(_GEMM, piece=piece)
    quantized, two_scales, floats = (_switch_over(product, by) for product in products)
    return GemmFrom(quantized, two_scales, floats, piece)


def kept_gemm(driver: Driver) -> GemmFrom | None:
    """What was measured of such a card, now or before."""
    return _KEPT.get(_key(driver))


def keep_gemm(driver: Driver, found: GemmFrom) -> None:
    """Keep it."""
    _KEPT.put(_key(driver), found, json.dumps(asdict(found)))


def _key(driver: Driver) -> str:
    return sha256(driver.name.encode() + cuda_state()).hexdigest()[:24]


def _read(text: str) -> GemmFrom:
    """One of kept.NONSENSE for what was not kept here."""
    known = json.loads(text)
    found = GemmFrom(*(known[field] for field in (*_KINDS, "piece")))
    rows = found.quantized, found.two_scales, found.floats
    if not all(type(n) is int and (n == 0 or n > FEW) for n in rows) or found.piece not in PIECES:
        raise ValueError("these are no numbers of rows, or bytes")
    return found


_KEPT = Kept("gemm", _read)


class _Product:
    """Made up weights of a kind, and rows to multiply them with."""

    def __init__(self, device: Cuda, kind: str) -> None:
        tensor = made_up(kind, _MATRIX, _MATRIX)
        self._device, self._w = device, device.weight(tensor, (0, _MATRIX), (0, _MATRIX))
        self._rows = np.random.default_rng(1).standard_normal((max(_ROWS), _MATRIX), np.float32)

    def seconds(self, n: int, by: GemmFrom) -> float:
        """What products of n rows take, as they stand in a pass."""
        device, limits = self._device, Limits(n, 1, 1, 1)
        ops = CudaRecorder(device.driver, limits, device.working_memory, device.check_interrupt, by)
        x = ops.input(self._w.columns)
        device.write(ops.place(x), self._rows[:n])
        for _ in range(_PRODUCTS):
            ops.linear(x, self._w)
        program = ops.finish()

        def count(inputs: Inputs) -> None:
            inputs.counts[Rows.TOKENS] = n

        ops.feed(count)
        return least_seconds(device, program.run, _TIMES)


def _switch_over(product: _Product, by: GemmFrom) -> int:
    """The fewest rows from which on cuBLAS is always the faster one; 0: it is not for the most of them."""
    found = 0
    for n in reversed(_ROWS):
        if product.seconds(n, by) >= product.seconds(n, _TILES):
            break
        found = n
    return found
