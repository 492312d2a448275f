"""A card of NVIDIA, by CuPy: plain allocations, one stream, kernels compiled by NVRTC at run time.

CuPy keeps what it has compiled on disk, by card, source and options; one option is a hash of all our sources,
as it does not look into what a source includes.
"""

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import cached_property
from typing import Any
from weakref import finalize

from numpy.typing import NDArray

from ggrun.devices.cuda.card_errors import CardErrors, cuda_errors, first_line
from ggrun.devices.cuda.cublas import Cublas
from ggrun.devices.cuda.cuda_stream import CudaStream
from ggrun.devices.cuda.dependent import DependentLaunch
from ggrun.devices.cuda.driver import Driver, Gemm, OutOfMemory
from ggrun.devices.cuda.found import Cards
from ggrun.devices.cuda.staging import Staging
from ggrun.devices.cuda.watch import Watch
from ggrun.devices.streams import Stream
from ggrun.errors import GgrunError
from ggrun.kernels import CUDA_OPTIONS, cuda_source, cuda_state

_STATIC_SHARED = 48 << 10
"""Bytes of shared memory that a block has without asking."""
_ENABLED_BEFORE = 704  # cudaErrorPeerAccessAlreadyEnabled


class _Memory:
    """An allocation of the card or, pinned, of the host."""

    def __init__(self, address: int, nbytes: int, free: Callable[[], None]) -> None:
        self.address, self.nbytes = address, nbytes
        finalize(self, free).atexit = False  # at the end, the driver frees all


class _Kernel:
    """A kernel of CuPy's."""

    def __init__(self, name: str, function: Any) -> None:
        self.name, self.function = name, function


class _On:
    """A card is the current one. A class, as each token enters several."""

    __slots__ = ("_device", "_errors", "_what")

    def __init__(self, driver: "CupyDriver", what: str) -> None:
        self._errors, self._what = driver.errors, what
        self._device = driver.device()

    def __enter__(self) -> None:
        try:
            self._device.__enter__()
        except self._errors.kinds as error:
            raise self._errors.told(error, self._what) from None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        try:
            self._device.__exit__(kind, error, trace)
        except self._errors.kinds as leaving:  # a card that has failed fails in every call
            error = error or leaving
        if isinstance(error, self._errors.kinds):
            raise self._errors.told(error, self._what) from None


class _Graph:
    def __init__(self, driver: "CupyDriver", graph: Any) -> None:
        self._driver, self._graph = driver, graph

    def launch(self) -> None:
        with self._driver.on("a graph"):
            self._graph.launch(self._driver.stream.raw)


class CupyDriver:
    """Card `index` of this machine, called `name` in errors. See Driver."""

    def __init__(self, index: int, name: str = "") -> None:
        self.index, self._called = index, name or f"cuda:{index}"
        card = Cards.found().card(index)
        self._cupy, self.name, self.identity = Cards.found().cupy, card.name, card.identity
        self.errors = CardErrors(self._cupy, f"{self._called} ({card.name})")
        self.arch, self.multiprocessors, self.l2_bytes = card.arch, card.multiprocessors, card.l2_bytes
        self._modules: dict[tuple[Any, ...], Any] = {}
        self._kernels: dict[tuple[Any, ...], _Kernel] = {}
        self._dependent, self._early = DependentLaunch.of(self._cupy, card.arch), True
        self.stream, self._writes = self._new_stream(), self._new_stream()

    def on(self, what: str) -> "_On":
        """Work on this card; errors of CUDA become GgrunErrors that say for what."""
        return _On(self, what)

    @cached_property
    def transfers(self) -> CudaStream:
        """A second stream, made when it is needed."""
        return self._new_stream()

    def free_memory(self) -> tuple[int, int]:
        """Free and all bytes of the card."""
        with self.on("its memory"):
            free, total = self._runtime.memGetInfo()
            return int(free), int(total)

    def allocate(self, nbytes: int) -> _Memory:
        """By cudaMalloc."""
        with self.on(f"{nbytes} bytes of memory"):
            address = self._runtime.malloc(max(nbytes, 1))
        return _Memory(address, nbytes, _freeing(self._cupy, self.index, address))

    def allocate_on_host(self, nbytes: int) -> _Memory:
        """Pinned memory, which every card reaches by the same address."""
        with self.on("pinned memory"):
            pinned = self.errors.pinned(nbytes)
        return _Memory(pinned.ptr, nbytes, lambda: _drop(pinned))

    def kernel(self, file: str, name: str, **defines: str | int) -> _Kernel:
        """Compile a file with these macros, if that was not done before, and find a kernel in it."""
        module = (file, *sorted(defines.items()))
        if (*module, name) not in self._kernels:
            with self.on(f"the kernel {name}"):
                try:
                    if module not in self._modules:
                        self._modules[module] = self._module(file, defines)
                    function = self._modules[module].get_function(name)  # compiles
                except self.errors.kinds:
                    raise
                except (RuntimeError, OSError, ImportError) as error:  # so many kinds has what is missing
                    raise self._no_compiler(error) from None
            self._kernels[*module, name] = _Kernel(name, function)
        return self._kernels[*module, name]

    def _no_compiler(self, error: Exception) -> GgrunError:
        """What says that NVRTC, or headers that it needs, are missing."""
        why, _, _ = first_line(error).partition(". ")  # CuPy's own advice may be for another CUDA
        major = self._runtime.runtimeGetVersion() // 1000
        return GgrunError(
            f"{self._called}: kernels cannot be compiled: {why}: pip install 'ggrun[cuda{major}]' brings "
            "NVRTC and the headers that it needs"
        )

    def _module(self, file: str, defines: dict[str, str | int]) -> Any:
        macros = [f"-D{name}={value}" for name, value in sorted(defines.items())]
        state = cuda_state().hex()[:16]
        options = (*CUDA_OPTIONS, f"-I{cuda_source('')}", f"-DSOURCES=0x{state}", *macros)
        return self._cupy.RawModule(code=cuda_source(file).read_text(), options=options)

    def launch(
        self,
        kernel: Any,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        args: Sequence[Any],
        shared: int = 0,
    ) -> None:
        """Enqueue a kernel."""
        with self.on(f"the kernel {kernel.name}"), self.stream.raw:
            if shared > _STATIC_SHARED:
                kernel.function.max_dynamic_shared_size_bytes = shared
            capture = self.stream.capture
            if self._dependent and capture and capture.early and self.stream.behind_kernel:
                function, stream = kernel.function.kernel.ptr, self.stream.raw.ptr
                self._dependent(function, grid, block, args, shared, stream)
            else:
                kernel.function(grid, block, tuple(args), shared_mem=shared)
            self.stream.behind_kernel = True

    @property
    def has_gemm(self) -> bool:
        """Whether cuBLAS can be used."""
        return self._cublas is not None

    def gemm(self, product: Gemm) -> None:
        """By cublasGemmEx."""
        assert self._cublas is not None
        with self.on("a matrix product"), self.stream.raw:
            self._cublas.gemm(product)

    @property
    def capturing(self) -> bool:
        """Whether what is enqueued now goes into a graph."""
        return self.stream.capture is not None

    def graph(self, record: Callable[[], None]) -> _Graph:
        """Launches, captured: none of them is done now. In a graph, kernels begin while others end."""
        try:
            return self._captured(record, self._early)
        except OutOfMemory:
            raise
        except GgrunError:
            if not self._early:
                raise
            graph = self._captured(record, early=False)
            self._early = False  # there may be drivers of NVIDIA's that know of it and refuse it
            return graph

    def _captured(self, record: Callable[[], None], early: bool) -> _Graph:
        with self.on("a graph"):
            try:
                self.stream.begin_capture(early)
                record()
            except BaseException:
                with suppress(*self.errors.kinds):  # it is worth nothing; but the stream must take work again
                    self.stream.end_capture()
                raise
            return _Graph(self, self.stream.end_capture())

    def fill(self, address: int, byte: int, nbytes: int) -> None:
        """By cudaMemsetAsync."""
        with self.on(f"a fill of {nbytes} bytes"):
            self.stream.behind_kernel = False
            self._runtime.memsetAsync(address, byte, nbytes, self.stream.raw.ptr)

    def write(self, address: int, data: NDArray[Any]) -> None:
        """By cudaMemcpyAsync in a stream of its own, whose end is waited for.

        cudaMemcpy may return when data has left the host's memory, before it has come to the card; our
        streams, which are non-blocking, would not wait for it.
        """
        runtime, stream = self._runtime, self._writes
        with self.on(f"a copy of {data.nbytes} bytes to it"):
            runtime.memcpyAsync(
                address, data.ctypes.data, data.nbytes, runtime.memcpyHostToDevice, stream.raw.ptr
            )
        stream.synchronize()

    def upload(self, address: int, data: NDArray[Any], beside: bool = False) -> None:
        """Through pinned buffers, so that the bus is busy while the next piece is read from the file."""
        with self.on(f"an upload of {data.nbytes} bytes"):
            (self._staging_beside if beside else self._staging).upload(address, data)

    def download(self, data: NDArray[Any], address: int) -> None:
        """By cudaMemcpyAsync to pinned memory; what has no room there by cudaMemcpy2DAsync, straight to data.

        That takes rows which are parts of longer ones.
        """
        assert data.ndim == 2 or data.flags.c_contiguous
        runtime, stream = self._runtime, self.stream.raw.ptr
        kind = runtime.memcpyDeviceToHost
        with self.on(f"a download of {data.nbytes} bytes"):
            if (here := self.stream.downloads.begin(data)) is not None:
                runtime.memcpyAsync(here.ctypes.data, address, data.nbytes, kind, stream)
                return
            rows = data if data.ndim == 2 else data.reshape(1, -1)
            width = rows.shape[-1] * rows.itemsize
            pitch = rows.strides[0] if len(rows) > 1 else width
            runtime.memcpy2DAsync(rows.ctypes.data, pitch, address, width, width, len(rows), kind, stream)

    def can_reach(self, card: Driver) -> bool:
        """As cudaDeviceCanAccessPeer says; a card reaches itself."""
        with self.on("peer access"):
            other = _index(card)
            return other == self.index or bool(self._runtime.deviceCanAccessPeer(self.index, other))

    def reach(self, card: Driver) -> None:
        """By cudaDeviceEnablePeerAccess."""
        if not self.can_reach(card):
            raise GgrunError(
                f"{self._called}: this machine has no peer access to cuda:{_index(card)}: leave out --p2p on"
            )
        if (other := _index(card)) == self.index:
            return
        with self.on("peer access"):
            try:
                self._runtime.deviceEnablePeerAccess(other)
            except self._runtime.CUDARuntimeError as error:
                if error.status != _ENABLED_BEFORE:
                    raise

    def copy(self, target: int, source: int, nbytes: int, card: Driver | None = None) -> None:
        """By cudaMemcpyAsync and cudaMemcpyPeerAsync, on this card's stream."""
        runtime, stream = self._runtime, self.stream.raw.ptr
        with self.on(f"a copy of {nbytes} bytes"):
            self.stream.behind_kernel = False
            if card is None or (to := _index(card)) == self.index:
                runtime.memcpyAsync(target, source, nbytes, runtime.memcpyDefault, stream)
            else:
                runtime.memcpyPeerAsync(target, to, source, self.index, nbytes, stream)

    def receive(self, target: int, source: int, nbytes: int) -> None:
        """By cudaMemcpyAsync."""
        runtime, stream = self._runtime, self.transfers.raw.ptr
        with self.on(f"a copy of {nbytes} bytes"):
            runtime.memcpyAsync(target, source, nbytes, runtime.memcpyHostToDevice, stream)

    def watched(self, what: str, instead: str, behind: Sequence[Stream] = ()) -> AbstractContextManager[None]:
        """By a thread, once there is something to watch."""
        return nullcontext() if self.capturing else self._watch.one(what, instead, behind)

    def close(self) -> None:
        """Forget kernels and buffers; memory is freed with what holds it."""
        self._writes.close()
        if transfers := self.__dict__.get("transfers"):
            transfers.close()
        self._modules.clear()
        self._kernels.clear()
        for staging in ("_staging", "_staging_beside"):
            self.__dict__.pop(staging, None)
        if cublas := self.__dict__.get("_cublas"):
            with suppress(GgrunError), self.on("cuBLAS"):  # a card that is lost has told it before
                cublas.close()
            del self._cublas

    def _new_stream(self) -> CudaStream:
        with self.on("a stream"):
            return CudaStream(self._cupy, self.errors, self.index)

    @cached_property
    def _watch(self) -> Watch:
        return Watch([self.stream])

    @cached_property
    def _staging(self) -> Staging:
        return Staging(self._cupy, self.stream, self.errors)

    @cached_property
    def _staging_beside(self) -> Staging:
        return Staging(self._cupy, self.transfers, self.errors)

    @cached_property
    def _cublas(self) -> Cublas | None:
        """None where it is missing, or does not work: then products go without it."""
        with self.on("cuBLAS"), suppress(ImportError, RuntimeError):
            cublas = Cublas(self._cupy)
            self.errors.kinds = (*self.errors.kinds, cublas.error)
            return cublas
        return None

    @property
    def _runtime(self) -> Any:
        return self._cupy.cuda.runtime

    def device(self) -> Any:
        """CuPy's, to be entered."""
        return self._cupy.cuda.Device(self.index)


def _freeing(cupy: Any, index: int, address: int) -> Callable[[], None]:
    """What frees memory: a function that keeps neither the driver nor the memory alive."""

    def free() -> None:
        if sys.is_finalizing():
            return
        # A card that has failed has told it before, and has lost this memory with all else.
        with suppress(*cuda_errors(cupy)), cupy.cuda.Device(index):
            cupy.cuda.runtime.free(address)

    return free


def _index(card: Driver) -> int:
    """The number of another card."""
    assert isinstance(card, CupyDriver), "cards of one kind only copy to each other"
    return card.index


def _drop(_: Any) -> None:
    """What was held until now may go."""
