"""Downloads by CuPy: the host does not wait in the call, and the numbers are there when it has waited."""

import gc
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import ref

import numpy as np
import pytest

from ggrun.devices.best import TopK
from ggrun.devices.cuda import downloads
from ggrun.devices.cuda.cuda_stream import CudaStream
from ggrun.devices.cuda.cupy_driver import CupyDriver
from ggrun.devices.cuda.device import Cuda
from ggrun.devices.cuda.driver import OutOfMemory
from ggrun.engine import engine as engine_module
from tests.cuda import fake_streams
from tests.cuda.fake_cupy import CUDARuntimeError, FakeCupy, told
from tests.cuda.models import engine
from tests.tiny import Tiny
from tests.waiting import ended

FAILED = CUDARuntimeError(700, "cudaErrorIllegalAddress: an illegal memory access")


class There:
    """Random bytes of a card, and arrays that they come to."""

    def __init__(self, nbytes: int = 1 << 20) -> None:
        self.driver = CupyDriver(0)
        self.values = np.random.default_rng(1).integers(0, 256, nbytes, np.uint8)
        self._memory = self.driver.allocate(nbytes)
        self.driver.write(self._memory.address, self.values)

    def begin(self, begin: int, end: int) -> np.ndarray:
        """Enqueue that these bytes come to a new array, which has none of them."""
        here = ~self.values[begin:end]
        self.driver.download(here, self._memory.address + begin)
        return here

    def right(self, here: np.ndarray, begin: int) -> bool:
        return np.array_equal(here.ravel(), self.values[begin : begin + here.size])


def in_a_thread(stream: CudaStream) -> None:
    thread = threading.Thread(target=stream.record().block)
    thread.start()
    thread.join()


def seen_done(stream: CudaStream) -> None:
    assert stream.record().done


WAYS: dict[str, Callable[[CudaStream], Any]] = {
    "synchronize": CudaStream.synchronize,
    "abandon": CudaStream.abandon,
    "an event": lambda stream: stream.record().block(),
    "an event, in another thread": in_a_thread,
    "an event that is done": seen_done,
    "work of the host": lambda stream: stream.enqueue(lambda: None),
}


@pytest.mark.parametrize("wait", WAYS.values(), ids=WAYS)
def test_it_is_there_when_the_host_has_waited(wait: Callable[[CudaStream], Any], cupy: FakeCupy) -> None:
    """And not before; ended by anything that waits."""
    there = There()
    here = there.begin(3, 1003)
    assert np.array_equal(here, ~there.values[3:1003])
    wait(there.driver.stream)
    assert there.right(here, 3)


def test_work_of_the_host_sees_it(cupy: FakeCupy) -> None:
    there, seen = There(), list[bool]()
    here = there.begin(0, 1000)
    there.driver.stream.enqueue(lambda: seen.append(there.right(here, 0)))
    there.driver.stream.synchronize()
    assert seen == [True]


def test_the_call_returns_while_the_card_computes(cupy: FakeCupy) -> None:
    there, end = There(), threading.Event()
    stream = there.driver.stream
    cupy.hold([stream.raw.ptr], end)
    here, behind = there.begin(0, 1000), stream.record()
    assert not behind.done
    assert np.array_equal(here, ~there.values[:1000])
    waiting = threading.Thread(target=behind.block)
    waiting.start()
    end.set()
    waiting.join()
    assert there.right(here, 0)


def test_an_event_is_of_what_was_begun_before(cupy: FakeCupy) -> None:
    there = There()
    first, between, second = there.begin(0, 100), there.driver.stream.record(), there.begin(100, 200)
    between.block()
    assert there.right(first, 0)
    assert not there.right(second, 100)
    there.driver.stream.synchronize()
    assert there.right(second, 100)


def test_work_of_the_host_is_of_what_was_begun_before(cupy: FakeCupy) -> None:
    there, end = There(), threading.Event()
    stream, seen = there.driver.stream, list[bool]()
    cupy.hold([stream.raw.ptr], end)
    here = [there.begin(0, 100)]
    stream.enqueue(lambda: seen.extend(there.right(each, 100 * i) for i, each in enumerate(here)))
    here.append(there.begin(100, 200))
    end.set()
    stream.synchronize()
    assert seen == [True, False]
    assert there.right(here[1], 100)


def test_what_is_begun_while_another_thread_waits_lands_later(
    cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a check that took too long is given up: its thread waits for the stream, and we go on."""
    there, begun = There(), list[np.ndarray]()
    stream, wait = there.driver.stream, fake_streams.Stream.synchronize

    def late(raw: fake_streams.Stream) -> None:
        wait(raw)
        if not begun:
            begun.append(there.begin(0, 100))

    monkeypatch.setattr(fake_streams.Stream, "synchronize", late)
    stream.synchronize()
    assert np.array_equal(begun[0], ~there.values[:100])
    stream.synchronize()
    assert there.right(begun[0], 0)


def test_tickets(cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are reached by a wait for all that was enqueued before them, and by nothing less."""
    stream = There().driver.stream
    first = stream.ticket()
    stream.record().block()
    assert stream.record().done
    stream.enqueue(lambda: None)
    with monkeypatch.context() as patch:
        patch.setattr(fake_streams.Stream, "synchronize", lambda _: (_ for _ in ()).throw(FAILED))
        told(stream.synchronize)
    assert stream.rested < first
    wait = fake_streams.Stream.synchronize
    given = list[int]()
    monkeypatch.setattr(
        fake_streams.Stream, "synchronize", lambda raw: (wait(raw), given.append(stream.ticket()))
    )
    stream.synchronize()
    assert first == stream.rested < given[0]
    stream.synchronize()
    assert stream.rested == given[0]


def test_more_than_there_is_room_for(cupy: FakeCupy) -> None:
    """Small and large ones, in any order."""
    there = There()
    rng = np.random.default_rng(2)
    for _ in range(5):
        begins = rng.integers(0, len(there.values) // 2, 12)
        sizes = rng.choice([0, 1, 100, 70_000, downloads._ROOM, downloads._ROOM + 1], 12)
        found = [there.begin(b, b + size) for b, size in zip(begins.tolist(), sizes.tolist(), strict=True)]
        there.driver.stream.synchronize()
        assert all(there.right(here, begin) for here, begin in zip(found, begins.tolist(), strict=True))


@pytest.mark.parametrize("room", [0, 1 << 18])
def test_rows_that_are_parts_of_longer_ones(
    room: int, cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside them nothing is written."""
    monkeypatch.setattr(downloads, "_ROOM", room)
    there = There(4 * 5 * 7)
    there.values = there.values.view(np.float32).reshape(5, 7)
    whole = np.full((5, 20), 3, np.float32)
    there.driver.download(whole[:, 6:13], there._memory.address)
    there.driver.stream.synchronize()
    assert whole[:, 6:13].tobytes() == there.values.tobytes()
    assert (np.delete(whole, range(6, 13), axis=1) == 3).all()


def test_who_waits_for_events_alone_never_runs_out_of_room(
    cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a worker does: nobody synchronizes there."""
    monkeypatch.setattr(cupy, "memcpy2DAsync", lambda *_: pytest.fail("the host waits for the card"))
    there = There()
    for begin in range(0, 20 * 50_000, 50_000):
        here = there.begin(begin, begin + 50_000)
        there.driver.stream.record().block()
        assert there.right(here, begin)


def test_arrays_live_until_their_numbers_are_there(cupy: FakeCupy) -> None:
    there = There()
    held = [ref(there.begin(0, size)) for size in (100, downloads._ROOM + 1)]
    gc.collect()
    assert all(array() is not None for array in held)
    there.driver.stream.synchronize()
    gc.collect()
    assert all(array() is None for array in held)


def test_many_threads_wait(cupy: FakeCupy) -> None:
    """While others are begun."""
    there, wrong = There(), list[int]()

    def check(here: np.ndarray, begin: int, event: Any) -> None:
        event.block()
        if not there.right(here, begin):
            wrong.append(begin)

    threads = []
    for begin in range(0, 100_000, 500):
        here = there.begin(begin, begin + 500)
        event = there.driver.stream.record()
        threads.append(threading.Thread(target=check, args=(here, begin, event)))
        threads[-1].start()
    ended(threads)
    assert not wrong


def test_nobody_goes_on_while_numbers_land(cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Because another thread has begun with it."""
    there, went_on = There(), list[bool]()
    here, event = there.begin(0, 100), there.driver.stream.record()
    other, land = threading.Thread(target=event.block), np.copyto

    def slow(*arrays: np.ndarray) -> None:
        if not went_on:
            other.start()
            other.join(0.1)
            went_on.append(not other.is_alive())
        land(*arrays)

    monkeypatch.setattr(downloads.np, "copyto", slow)
    there.driver.stream.synchronize()
    ended([other])
    assert went_on == [False]
    assert there.right(here, 0)


def test_a_card_that_fails_gives_nothing(cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch) -> None:
    there = There()
    here = there.begin(0, 100)

    def fail(_: object) -> None:
        raise CUDARuntimeError(700, "cudaErrorIllegalAddress: an illegal memory access")

    with monkeypatch.context() as patch:
        patch.setattr(fake_streams.Stream, "synchronize", fail)
        assert "cudaErrorIllegalAddress" in told(there.driver.stream.synchronize)
    assert np.array_equal(here, ~there.values[:100])


def test_there_is_no_pinned_memory(cupy: FakeCupy) -> None:
    there = There()
    cupy.failing["alloc_pinned_memory"] = CUDARuntimeError(2, "cudaErrorMemoryAllocation: out of memory")
    assert told(lambda: there.begin(0, 100), OutOfMemory).startswith(
        "cuda:0 (Fake): 262144 bytes of pinned memory: "
    )


def test_a_token_makes_no_event_and_waits_once(
    cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """All else takes the host longer than its share of a token."""
    monkeypatch.setattr(engine_module, "_FEW_LOGITS", 0)
    path = Tiny(layers=1).write(tmp_path / "model.gguf")
    card = engine(path, {"cuda:0": Cuda(CupyDriver(0), "cuda:0")})
    top, waits = TopK(8, 36), list[int]()
    for token in range(3):
        card.evaluate([token], top=top)
    wait = fake_streams.Stream.synchronize
    monkeypatch.setattr(
        fake_streams.Stream, "synchronize", lambda stream: (waits.append(stream.ptr), wait(stream))
    )
    for name in ("Event", "alloc_pinned_memory"):
        monkeypatch.setattr(cupy.cuda, name, lambda *_, name=name, **__: pytest.fail(name))
    monkeypatch.setattr(cupy, "memcpy2DAsync", lambda *_: pytest.fail("to memory that is not pinned"))
    before = len(cupy.launched)
    for token in range(3, 8):
        card.evaluate([token], top=top)
    assert len(cupy.launched) - before == len(waits) == 5
