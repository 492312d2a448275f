"""What the cases of gpu_cases.py are made of: a card, random weights and rows, recorded launches."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggrun.devices.base import Inputs, Limits
from ggrun.devices.cuda.attention import PAGE, bucket
from ggrun.devices.cuda.driver import Gemm
from ggrun.devices.cuda.gemm import GemmFrom
from ggrun.devices.cuda.memory import CudaWeight
from ggrun.devices.cuda.program import FEW, Counts, CudaProgram, Launch, enqueue
from ggrun.devices.cuda.recorder import CudaRecorder
from ggrun.gguf import FORMATS, Tensor
from tools.gpu_time import Work, open_card, sets_for
from tools.model_blocks import Weights

Floats = NDArray[np.float32]
NEVER, ALWAYS = GemmFrom(), GemmFrom(FEW + 1, FEW + 1, FEW + 1)
"""Which products are cuBLAS's."""
_TOKENS = 256
"""Tokens are below this number, which every vocabulary has."""


@dataclass(frozen=True)
class Timed:
    """Work of one kernel, or of several that belong together.

    sets        the same on several inputs, which take turns
    nbytes      that are moved by one; 0: only the time is of interest
    operations  of one, where tensor cores are the bound; else 0
    out         the address and shape of what all of them write; None for what is changed in place
    error       how far that is from what it should be
    graph       whether it can be in one
    """

    what: str
    sets: Sequence[Work]
    nbytes: int = 0
    operations: int = 0
    out: tuple[int, tuple[int, ...]] | None = None
    error: Callable[[Floats], float] | None = None
    keep: Any = None
    graph: bool = True


class Rig:
    """A card, and what cases are made of."""

    def __init__(self, emulated: bool) -> None:
        self.tiny, self.card = emulated, open_card(emulated)
        self.driver = self.card.driver
        self.rng = np.random.default_rng(1)
        self._drawn: dict[tuple[str, int], NDArray[np.uint8]] = {}

    def recorder(self, tokens: int, pages: int = 1, gemm_from: GemmFrom = NEVER) -> CudaRecorder:
        """For one sequence; products are our own where nothing else is said."""
        self.card.gemm_from = gemm_from
        return self.card.recorder(Limits(tokens, tokens, 1, pages))

    def normal(self, *shape: int) -> Floats:
        """Random numbers."""
        return self.rng.standard_normal(shape, np.float32)

    def data(self, name: str, rows: int, k: int) -> NDArray[np.uint8]:
        """Random weights of a format, [rows, k]."""
        if (name, rows * k) not in self._drawn:
            self._drawn.clear()  # those of one case at a time
            drawn = Weights(FORMATS[name], k**-0.5, (1, rows)).draw(rows * k)
            self._drawn[name, rows * k] = drawn.view(np.uint8).reshape(-1)
        return self._drawn[name, rows * k]

    def weight(self, name: str, rows: int, k: int, experts: int = 1) -> CudaWeight:
        """The same on the card."""
        shape = (k, rows, experts) if experts > 1 else (k, rows)
        tensor = Tensor(name, shape, FORMATS[name], self.data(name, experts * rows, k))
        return self.card.weight(tensor, (0, rows), (0, k))

    def weights(self, name: str, rows: int, k: int) -> list[CudaWeight]:
        """As many as must take turns."""
        count = sets_for(FORMATS[name].nbytes(k) * rows, self.driver)
        return [self.weight(name, rows, k) for _ in range(count)]

    def input(self, ops: CudaRecorder, rows: int, width: int) -> tuple[Any, Floats]:
        """A buffer with random rows in it, and those."""
        x, values = ops.input(width), self.normal(rows, width)
        self.card.write(ops.place(x), values)
        return x, values

    def at(self, ops: CudaRecorder, first: int, tokens: int) -> Counts:
        """Feed so many tokens, with `first` others before them in a sequence of pages in any order."""

        def write(inputs: Inputs) -> None:
            positions = np.arange(first, first + tokens, dtype=np.int32)
            pages = inputs.tables.shape[1]
            inputs.counts[:] = (tokens, tokens, tokens)
            inputs.tables[0] = np.random.default_rng(2).permutation(pages)
            inputs.positions[:tokens], inputs.sequences[:tokens] = positions, 0
            inputs.slots[:tokens] = inputs.tables[0][positions // PAGE] * PAGE + positions % PAGE
            inputs.tokens[:tokens] = self.rng.integers(0, _TOKENS, tokens)
            inputs.outputs[:tokens] = np.arange(tokens)

        ops.feed(write)
        return Counts(tokens, tokens, tokens, 1, bucket(first + tokens))

    def works(self, programs: Sequence[CudaProgram], counts: Counts, *names: str) -> list[Work]:
        """The launches of each program; only those of kernels whose names begin so, where some are given."""
        found = [(program, program.launches(counts)) for program in programs]
        return [
            partial(self._enqueue, [x for x in launches if x.name.startswith(names or "")], program)
            for program, launches in found
        ]

    def by_kernel(self, programs: Sequence[CudaProgram], counts: Counts) -> dict[str, list[Work]]:
        """The launches of each program, by the kernel."""
        names = dict.fromkeys(launch.name for launch in programs[0].launches(counts))
        return {
            name: [
                partial(self._enqueue, [x for x in program.launches(counts) if x.name == name], program)
                for program in programs
            ]
            for name in names
        }

    def launch(self, file: str, name: str, shape: Any, args: Sequence[Any], **defines: str | int) -> Work:
        """One launch of a kernel."""
        kernel = self.driver.kernel(file, name, **defines)
        return partial(self._enqueue, [Launch(kernel, *shape, tuple(args))], None)

    def _enqueue(self, works: Sequence[Launch | Gemm], keep: Any) -> None:
        """`keep` has the memory that the launches point to."""
        enqueue(self.driver, works)

    def spoil(self, address: int, shape: tuple[int, ...]) -> None:
        """Leave nothing there that is a number."""
        self.driver.fill(address, 0xFF, 4 * int(np.prod(shape)))

    def read(self, address: int, *shape: int) -> Floats:
        """Floats of the card."""
        out = np.empty(shape, np.float32)
        self.driver.download(out, address)
        self.driver.stream.synchronize()
        return out
