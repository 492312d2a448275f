"""What ggrun calls of CuPy, on the emulator: most is done at once, or noted while a graph is captured.

A stream may be held: then nothing that is recorded or waited for ends, although all is done. What comes from
the host's memory, pinned or not, lands when its stream is waited for or goes on; pinned memory is read no
earlier. What goes to pinned memory lands when the host has waited: until then something else is there.
"""

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from weakref import finalize

import numpy as np
import pytest

from ggrun.errors import GgrunError
from ggrun.kernels import cuda_source
from tests.cuda.fake_streams import CUDARuntimeError, Event, Stream
from tools.cuda_emulator.kernels import load_kernel
from tools.cuda_emulator.memory import Memory


def told(work: Callable[[], Any], kind: type[GgrunError] = GgrunError) -> str:
    """The one line that a user sees."""
    with pytest.raises(kind) as error:
        work()
    assert "\n" not in str(error.value)
    return str(error.value)


def _pinned(nbytes: int) -> Any:
    """Memory of the host, which has its address."""

    class Pinned(ctypes.Array):  # type: ignore[type-arg]
        _type_, _length_ = ctypes.c_uint8, nbytes
        ptr = property(ctypes.addressof)

    return Pinned()


class _Module:
    def __init__(self, cuda: "FakeCupy", code: str, options: tuple[str, ...]) -> None:
        self._cuda = cuda
        cuda.compiled += 1
        self._file = next(p.name for p in Path(cuda_source("")).glob("*.cu") if p.read_text() == code)
        defines = dict(option[2:].split("=", 1) for option in options if option.startswith("-D"))
        assert defines.pop("SOURCES").startswith("0x")
        self._defines: dict[str, str | int] = dict(defines)

    def get_function(self, name: str) -> Any:
        return _Function(self._cuda, load_kernel(self._file, name, 80, self._defines))


class _Function:
    max_dynamic_shared_size_bytes = 48 << 10

    def __init__(self, cuda: "FakeCupy", kernel: Any) -> None:
        self._cuda, self._kernel = cuda, kernel
        self.name, self.signature = kernel.name, kernel.signature
        self.kernel = SimpleNamespace(ptr=1000 + len(cuda.functions))
        cuda.functions[self.kernel.ptr] = self

    def __call__(self, grid: Any, block: Any, args: Any, shared_mem: int) -> None:
        assert shared_mem <= self.max_dynamic_shared_size_bytes
        self._kernel.max_dynamic_shared = self.max_dynamic_shared_size_bytes
        self._cuda.streams[-1].do(lambda: self._kernel(grid, block, args, shared_mem), "kernel")


class Cublas:
    """The module `cublas`: columns first. `failing`: create finds no memory."""

    CUBLAS_OP_N, CUBLAS_OP_T, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT = 0, 1, 68, -1
    failing = False

    class CUBLASError(RuntimeError):
        pass

    def __init__(self, cuda: "FakeCupy") -> None:
        self._cuda = cuda
        self.products, self.handles = 0, 0

    def create(self) -> int:
        if self.failing:
            raise self.CUBLASError("CUBLAS_STATUS_ALLOC_FAILED")
        self.handles += 1
        return 5

    def destroy(self, handle: int) -> None:
        assert handle == 5
        self.handles -= 1

    def gemmEx(  # noqa: N802
        self, handle: int, transposed: int, plain: int, m: int, n: int, k: int, *rest: int
    ) -> None:
        alpha, a, a_kind, lda, b, b_kind, ldb, beta, c, c_kind, ldc, *how = rest
        assert (handle, transposed, plain, how) == (5, 1, 0, [68, -1])
        assert (a_kind, b_kind, c_kind) == (2, 2, 0)
        if self._cuda.streams[-1].captured is not None:
            raise NotImplementedError("calling cuBLAS API during stream capture is currently unsupported")
        if self.failing:
            raise self.CUBLASError("CUBLAS_STATUS_EXECUTION_FAILED")
        scale, keep = _columns(alpha, "f4", 1, 1, 1)[0, 0], _columns(beta, "f4", 1, 1, 1)[0, 0]
        assert keep == 0
        self._cuda.streams[-1].land()
        left, right = _columns(a, "f2", k, m, lda), _columns(b, "f2", k, n, ldb)
        product = left.T.astype(np.float32) @ right.astype(np.float32)
        _columns(c, "f4", m, n, ldc)[:] = scale * product
        self.products += 1


def _columns(address: int, kind: str, rows: int, columns: int, stride: int) -> np.ndarray:
    """A matrix whose columns lie `stride` values apart."""
    size, count = np.dtype(kind).itemsize, (columns - 1) * stride + rows
    flat = np.frombuffer((ctypes.c_uint8 * (count * size)).from_address(address), kind)
    return np.lib.stride_tricks.as_strided(flat, (rows, columns), (size, stride * size))


class _Cuda(SimpleNamespace):
    """The module `cupy.cuda`, which loads cuBLAS when it is asked for it."""

    def __getattr__(self, name: str) -> Any:
        assert name == "cublas"
        if self.library is None:
            raise ImportError("libcublas.so.13: cannot open shared object file")
        return self.library


class _Chosen(threading.local):
    """The devices and streams that a thread works on, the last one now: each thread has its own."""

    def __init__(self) -> None:
        self.devices, self.streams = [0], list[Stream]()


class FakeCupy:
    """The module `cupy`, with cards of so many bytes. `failing`: errors by the name of what is called.

    peers    whether cards have peer access; `reached`: pairs of cards that have enabled it
    `lost`: cards that are counted and do not answer; `launched`: graphs
    """

    def __init__(self, memory: int = 1 << 28, cards: int = 2, major: int = 8, peers: bool = True) -> None:
        self.failing: dict[str, Exception] = {}
        self.compiled, self._chosen, self.made = 0, _Chosen(), dict[int, Stream]()
        self.functions, self.driver_version = dict[int, _Function](), 12020
        self._memory, self._used, self._held = memory, 0, dict[int, Memory]()
        self._cards, self._major, self._peers = cards, major, peers
        self.lost, self.launched = set[int](), list[object]()
        self._pinned_at = set[tuple[int, int]]()
        self.reached, self.copies = set[tuple[int, int]](), list[tuple[int, int]]()
        self.sent: list[int] = []
        """The streams of what went from the host's memory to a card."""
        self.cuda = _Cuda(
            library=Cublas(self), runtime=self, driver=SimpleNamespace(CUDADriverError=ZeroDivisionError),
            compiler=SimpleNamespace(CompileException=KeyError),
            memory=SimpleNamespace(OutOfMemoryError=MemoryError),
            Device=self._device, Event=partial(Event, self),
            Stream=lambda non_blocking: Stream(self, non_blocking),
            alloc_pinned_memory=lambda nbytes: self._pinned(nbytes),
            get_elapsed_time=self._elapsed,
        )  # fmt: skip

    __spec__ = SimpleNamespace(name="cupy")
    CUDARuntimeError = CUDARuntimeError
    memcpyHostToDevice, memcpyDeviceToHost, memcpyDefault = 1, 2, 4  # noqa: N815
    CUDA_R_32F, CUDA_R_16F, is_hip = 0, 2, False

    def RawModule(self, code: str, options: tuple[str, ...]) -> _Module:  # noqa: N802
        self._fail("RawModule")
        return _Module(self, code, options)

    def card_of(self, stream: int) -> int:
        """The card of a stream, by its number."""
        return self.made[stream].card

    def hold(self, streams: list[int], until: threading.Event) -> None:
        """Let streams, by their numbers, not come to an end before an event."""
        for number in streams:
            self.made[number].held = until

    def enqueue(self, streams: list[int], work: Callable[[], None]) -> None:
        """Do what streams do together, or note it where all of them are in a graph's capture."""
        made = [self.made[number] for number in streams]
        assert len({stream.captured for stream in made}) == 1
        for stream in made[1:]:
            stream.do(lambda: None)
        made[0].do(work)

    @contextmanager
    def _device(self, index: int) -> Iterator[None]:
        assert 0 <= index < self._cards
        self._chosen.devices.append(index)
        try:
            yield
        finally:
            self._chosen.devices.pop()

    @property
    def devices(self) -> list[int]:
        return self._chosen.devices

    @property
    def streams(self) -> list[Stream]:
        return self._chosen.streams

    def _elapsed(self, begin: Event, end: Event) -> float:
        assert begin.timed
        assert end.timed
        return 1e3 * (end.time - begin.time)

    def _fail(self, name: str) -> None:
        if name in self.failing:
            raise self.failing[name]

    def _pinned(self, nbytes: int) -> Any:
        self._fail("alloc_pinned_memory")
        pinned = _pinned(nbytes)
        span = pinned.ptr, pinned.ptr + nbytes
        self._pinned_at.add(span)
        finalize(pinned, self._pinned_at.discard, span)
        return pinned

    def _is_pinned(self, address: int) -> bool:
        return any(begin <= address < end for begin, end in self._pinned_at)

    def getDeviceCount(self) -> int:  # noqa: N802
        self._fail("getDeviceCount")
        return self._cards

    def getDeviceProperties(self, index: int) -> dict[str, Any]:  # noqa: N802
        if index in self.lost:
            raise CUDARuntimeError(101, "cudaErrorInvalidDevice: the GPU is lost\nor whatever")
        return {
            "name": b"Fake", "major": self._major, "minor": 0, "multiProcessorCount": 4,
            "uuid": bytes([index] * 16), "totalGlobalMem": self._memory, "l2CacheSize": 1 << 12,
        }  # fmt: skip

    def deviceGetPCIBusId(self, index: int) -> str:  # noqa: N802
        return f"0000:{index + 1:02x}:00.0"

    def deviceCanAccessPeer(self, index: int, peer: int) -> int:  # noqa: N802
        return int(self._peers and index != peer)

    def deviceEnablePeerAccess(self, peer: int) -> None:  # noqa: N802
        self._fail("deviceEnablePeerAccess")
        pair = self._chosen.devices[-1], peer
        if not self.deviceCanAccessPeer(*pair):
            raise CUDARuntimeError(217, "cudaErrorPeerAccessUnsupported")
        if pair in self.reached:
            raise CUDARuntimeError(704, "cudaErrorPeerAccessAlreadyEnabled")
        self.reached.add(pair)

    def driverGetVersion(self) -> int:  # noqa: N802
        return 0 if "driver" in self.failing else self.driver_version

    def runtimeGetVersion(self) -> int:  # noqa: N802
        return 13010

    def memGetInfo(self) -> tuple[int, int]:  # noqa: N802
        return self._memory - self._used, self._memory

    def malloc(self, nbytes: int) -> int:
        if nbytes > self._memory - self._used:
            raise CUDARuntimeError(2, "cudaErrorMemoryAllocation: out of memory")
        memory = Memory(nbytes)
        self._used += nbytes
        self._held[memory.address] = memory
        return memory.address

    def _memory_at(self, address: int) -> Memory | None:
        """None for the host's."""
        held = list(self._held.values())
        return next((m for m in held if m.address <= address < m.address + m.nbytes), None)

    def free(self, address: int) -> None:
        self._used -= self._held.pop(address).nbytes

    def memcpyAsync(  # noqa: N802
        self, target: int, source: int, nbytes: int, kind: int, stream: int
    ) -> None:
        assert kind in (self.memcpyHostToDevice, self.memcpyDeviceToHost, self.memcpyDefault)
        if kind == self.memcpyHostToDevice:
            self.sent.append(stream)
        if kind == self.memcpyDeviceToHost:
            assert self._is_pinned(target)
            self.made[stream].bring(target, source, nbytes)
        elif self._is_pinned(source):
            self.made[stream].do_late(partial(self._land, target, source, nbytes, self._memory_at(target)))
        elif kind == self.memcpyDefault:
            self.made[stream].do(lambda: ctypes.memmove(target, source, nbytes))
        else:
            assert not self.made[stream].captured
            staged = ctypes.create_string_buffer(ctypes.string_at(source, nbytes), nbytes)
            self.made[stream].do_late(partial(ctypes.memmove, target, staged, nbytes))

    def _land(self, target: int, source: int, nbytes: int, _: Memory | None) -> None:
        """Read pinned memory, which must still be there; so is the card's, as cudaFree waits."""
        assert self._is_pinned(source)
        ctypes.memmove(target, source, nbytes)

    def memcpy2DAsync(  # noqa: N802
        self,
        target: int,
        pitch: int,
        source: int,
        source_pitch: int,
        width: int,
        height: int,
        kind: int,
        stream: int,
    ) -> None:
        assert kind == self.memcpyDeviceToHost
        assert not self.made[stream].captured
        self.made[stream].land()
        for row in range(height):
            ctypes.memmove(target + row * pitch, source + row * source_pitch, width)

    def memcpyPeerAsync(  # noqa: N802
        self, target: int, to: int, source: int, card: int, nbytes: int, stream: int
    ) -> None:
        assert (card, to) in self.reached
        self.copies.append((card, to))
        self.made[stream].do(lambda: ctypes.memmove(target, source, nbytes))

    def memsetAsync(self, address: int, byte: int, nbytes: int, stream: int) -> None:  # noqa: N802
        self.made[stream].do(lambda: ctypes.memset(address, byte, nbytes))
