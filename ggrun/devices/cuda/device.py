"""A CUDA device: memory with a limit, uploads, copies and sums on its stream."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise, permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggrun.devices.base import Device, Limits, Place
from ggrun.devices.best import Best, TopK
from ggrun.devices.budget import Budget
from ggrun.devices.cuda import grids
from ggrun.devices.cuda.attention import row_bytes
from ggrun.devices.cuda.driver import Driver, OutOfMemory
from ggrun.devices.cuda.gemm import GemmFrom
from ggrun.devices.cuda.memory import CudaMemory, CudaPlace, CudaWeight, block, needed_for
from ggrun.devices.cuda.pinned import PinnedRows, rows_in
from ggrun.devices.cuda.recorder import CudaRecorder
from ggrun.devices.cuda.relay import Relay
from ggrun.devices.cuda.slot import CudaSlot
from ggrun.devices.streams import Mark, Stream
from ggrun.devices.wire import DTYPES
from ggrun.errors import GgrunError, Interrupted
from ggrun.gguf import Tensor

_WHOLE = 16  # bytes: kernels load so many at once, see kernels/cuda/formats/loads.cuh
_PROBED, _PASSES = 1 << 30, 7  # bytes that the bandwidth is measured on, and how often
_L2S = 2  # and at least so many second-level caches
_DIRECTLY = "start again with --p2p off, which copies through the host's memory"
_BY_HOST = "start again without one of them (-dev); ggrun doctor tests them"
_DRAWN = 16 << 20  # bytes of what is copied then: zeros may be faster than what is random


class Cuda:
    """A card, or a part of it.

    limit       bytes that may be taken of its memory; several devices may share a card
    gemm_from   which products are cuBLAS's, where that is there
    uploaded    is told of each weight's bytes, when they were read
    """

    def __init__(
        self,
        driver: Driver,
        name: str,
        limit: int | None = None,
        gemm_from: GemmFrom | None = None,
        uploaded: Callable[[int], None] | None = None,
    ) -> None:
        self.name, self.driver, self._budget = name, driver, Budget(name, limit)
        # Asked now, before weights take what memory the library needs.
        self.gemm_from = gemm_from if gemm_from and gemm_from.least and driver.has_gemm else GemmFrom()
        self._interrupted, self._uploaded = False, uploaded
        self._relays: dict[Driver, Relay | None] = {driver: None}  # None: copies go direct
        self._pinned = PinnedRows(driver)

    @property
    def stream(self) -> Stream:
        """The driver's."""
        return self.driver.stream

    def available(self) -> int:
        """What is free on the card, or the limit leaves."""
        free, _ = self.driver.free_memory()
        return free if self._budget.free is None else min(free, self._budget.free)

    def bandwidth(self) -> float:
        """Bytes a second, read and written, of a copy within the card: the best of several.

        OutOfMemory where so little is free that the second-level cache would hold much of it.
        """
        free = self.available()
        if (nbytes := min(_PROBED, free // 3)) < _L2S * self.driver.l2_bytes:
            raise OutOfMemory(
                f"{self.name}: {free >> 20} MiB are free, too little to measure its memory with: "
                "who else has taken memory of it?"
            )
        return max(self.copy_rates(nbytes, _PASSES))

    def copy_rates(self, nbytes: int, times: int) -> list[float]:
        """Bytes a second, read and written, of each of several copies of so many bytes within the card."""
        source, target = (self._take(nbytes, "a measurement") for _ in range(2))
        done = min(nbytes, _DRAWN)
        self.driver.write(source.address, np.random.default_rng(1).integers(0, 256, done, np.uint8))
        while done < nbytes:
            more = min(done, nbytes - done)
            self.driver.copy(source.address + done, source.address, more)
            done += more

        def copied() -> Mark:
            self.driver.copy(target.address, source.address, nbytes)
            return self.stream.mark()

        marks = [copied() for _ in range(times + 1)]  # the first one is to warm up
        self.stream.synchronize()
        return [2 * nbytes / end.since(begin) for begin, end in pairwise(marks)]

    def recorder(self, limits: Limits) -> CudaRecorder:
        """A new recorder."""
        return CudaRecorder(self.driver, limits, self.working_memory, self.check_interrupt, self.gemm_from)

    def working_memory(self, nbytes: int) -> CudaMemory:
        """Memory for buffers."""
        return self._take(nbytes, "working memory")

    def zeros(self, nbytes: int, what: str, on_host: bool = False) -> CudaMemory:
        """Zeroed memory of the card; or of the host, which the card reads from there."""
        if on_host:
            with needed_for(what, self.name):
                allocation = self.driver.allocate_on_host(nbytes)
            memory = CudaMemory(allocation.address, nbytes, allocation)
        else:
            memory = self._take(nbytes, what)
        self.driver.fill(memory.address, 0, nbytes)
        return memory

    def vector(self, values: NDArray[np.float32], what: str = "a vector") -> CudaMemory:
        """A copy on the card."""
        values = np.ascontiguousarray(values, np.float32)
        memory = self._take(values.nbytes, what)
        with needed_for(what, self.name):
            self.driver.write(memory.address, values)
        return memory

    def weight(self, tensor: Tensor, rows: tuple[int, int], columns: tuple[int, int]) -> CudaWeight:
        """A copy of the block, which the stream makes."""
        data = block(tensor, rows, columns)
        memory = self._take(data.nbytes, what := f"the weights {tensor.name}")
        with needed_for(what, self.name):
            self.driver.upload(memory.address, data)
        if self._uploaded:
            self._uploaded(memory.nbytes)
        return CudaWeight.of(tensor, data, memory, memory.address)

    def slot(self, nbytes: int) -> CudaSlot:
        """Memory of the card."""
        memory = self._take(nbytes, "weights that come as they are needed")
        return CudaSlot(self.driver, self.name, memory, self.check_interrupt)

    def rows(self, weight: CudaWeight, rows: tuple[int, int]) -> CudaWeight:
        """A part of a weight where it lies."""
        return weight.cut(rows)

    def row_bytes(self, kind: str, dim: int) -> int:
        """As kernels/cuda/cells.cuh lays them."""
        return row_bytes(kind, dim)

    def part(self, place: CudaPlace, row: int) -> CudaPlace:
        """An address further on."""
        return place.part(row)

    def write(self, place: CudaPlace, values: NDArray[Any]) -> None:
        """Copy into it, now."""
        self.driver.write(place.address, np.ascontiguousarray(values, DTYPES[place.kind]))

    def connect(self, other: "Cuda", direct: bool) -> None:
        """Let copies to another card go direct, or through the host's memory, as they do before this call.

        GgrunError where the machine cannot copy directly.
        """
        if direct:
            self.driver.reach(other.driver)
        self._relays[other.driver] = None if direct else Relay(self.driver, other.driver)

    def is_direct(self, other: "Cuda") -> bool:
        """Whether copies to another card go direct."""
        return self._relays.get(other.driver, False) is None

    def copy(self, source: CudaPlace, rows: int, device: Device, target: Place) -> None:
        """From card to card as they are connected; to another kind of device by way of the host's memory."""
        nbytes = source.nbytes(rows)
        if isinstance(device, Cuda):
            if device.driver not in self._relays:
                self.connect(device, direct=False)
            relay = self._relays[device.driver]
            # Weights may be on their way in the relay's second stream, and wait for programs.
            behind = [device.driver.transfers] if relay else []
            with watched([self, device], "a copy between", behind):
                if relay:
                    relay.copy(target.address, source.address, nbytes)
                else:
                    self.driver.copy(target.address, source.address, nbytes, device.driver)
            return
        memory = self._pinned.take(nbytes)
        self.driver.copy(memory.address, source.address, nbytes)
        by_way_of = rows_in(memory, (rows, source.width), DTYPES[source.kind])

        def arrived() -> None:
            device.write(target, by_way_of)
            self._pinned.give(memory)

        self.stream.enqueue(arrived)

    def narrow(self, source: CudaPlace, rows: int, target: CudaPlace) -> None:
        """A kernel."""
        total = rows * source.width
        args = source.address, target.address, np.int64(total)
        self.driver.launch(self.driver.kernel("reduce.cu", "narrow"), *grids.elements(total), args)

    def sum(self, places: Sequence[CudaPlace], rows: int, target: CudaPlace) -> None:
        """A kernel that reads each place once; two or more of them where there are many places."""
        total, left = rows * target.width, list(places)
        kernel = self.driver.kernel("reduce.cu", "sum_bf16" if places[0].kind == "bf16" else "sum")
        while len(left) > 1 or left != [target]:
            taken, left = left[: grids.PLACES], left[grids.PLACES :]
            into = taken[0] if left else target
            addresses = [place.address for place in taken] + [0] * (grids.PLACES - len(taken))
            args = (*addresses, np.int32(len(taken)), into.address, np.int64(total))
            self.driver.launch(kernel, *grids.elements(total), args)
            left = [into, *left]

    def download(self, source: CudaPlace, rows: int, out: NDArray[np.float32]) -> None:
        """A copy that the stream makes."""
        self.driver.download(out, source.address)

    def download_top_k(self, source: CudaPlace, rows: int, top: TopK, best: Best) -> None:
        """One copy that the stream makes."""
        self.driver.download(best.both.reshape(-1), source.address)

    def interrupt(self) -> None:
        """End the programs that come: a kernel that runs is done soon."""
        self._interrupted = True

    def resume(self) -> None:
        """Let programs run again."""
        self._interrupted = False

    def check_interrupt(self) -> None:
        """Interrupted, from `interrupt` to `resume`."""
        if self._interrupted:
            raise Interrupted("the computation was interrupted")

    def close(self) -> None:
        """Take no more work, and give back the card."""
        self.stream.close()
        self._relays.clear()
        self._pinned = PinnedRows(self.driver)  # what is kept for others goes now, and not when nobody has us
        self.driver.close()

    def _take(self, nbytes: int, what: str) -> CudaMemory:
        self._budget.check(nbytes, what)
        with needed_for(what, self.name):
            allocation = self.driver.allocate(-(-nbytes // _WHOLE) * _WHOLE)
        memory = CudaMemory(allocation.address, nbytes, allocation)
        self._budget.take(memory, nbytes, what)
        return memory


def watched(cards: Sequence[Cuda], what: str, behind: Sequence[Stream] = ()) -> AbstractContextManager[None]:
    """Watch what the first card enqueues inside and others take part in; see Driver.watched."""
    if len({card.driver.identity for card in cards}) == 1:
        return nullcontext()
    direct = any(one.is_direct(other) for one, other in permutations(cards, 2))
    names = " and ".join(card.name for card in cards)
    return cards[0].driver.watched(f"{what} {names}", _DIRECTLY if direct else _BY_HOST, behind)


def card_of(device: Device, what: str) -> Cuda:
    """A device that is a card; GgrunError when it is none. what: is done by cards alone."""
    if not isinstance(device, Cuda):
        raise GgrunError(f"{what} CUDA devices alone, {device.name} is none")
    return device
