"""The emulator itself: each mistake of bad.cu is caught, by an error that names it or by a wrong result."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ggrun.devices.late import Schedule
from ggrun.errors import GgrunError
from tests.cuda.conftest import Card, OnCard
from tools.cuda_emulator.driver import EmulatedDriver
from tools.cuda_emulator.kernels import KernelError

BAD = Path(__file__).parent / "bad.cu"
ORDERS = (0, 1, 7)

pytestmark = pytest.mark.skipif("config.getoption('device') == 'cuda'")


def run(card: Card, name: str, *args: Any, grid: int = 1, block: int = 32, **options: Any) -> None:
    card.run(str(BAD), name, grid, block, args, **options)


@contextmanager
def told(*texts: str) -> Iterator[None]:
    """The launch fails, and its one line has all of these."""
    with pytest.raises(KernelError) as caught:
        yield
    assert "\n" not in str(caught.value)
    for text in texts:
        assert text in str(caught.value)


def line_of(text: str) -> int:
    return next(i for i, line in enumerate(BAD.read_text().splitlines(), 1) if text in line)


def results(name: str, block: int, **options: Any) -> list[np.ndarray[Any, Any]]:
    """What a kernel with one result gives in each order of threads."""
    found = []
    for order in ORDERS:
        card = Card(EmulatedDriver(order=order))
        y = card.zeros(block, np.float32)
        run(card, name, y, block=block, **options)
        found.append(card.read(y))
    return found


@pytest.fixture
def emulated() -> Card:
    return Card(EmulatedDriver())


@pytest.fixture
def y(emulated: Card) -> OnCard:
    return emulated.zeros(32, np.float32)


RACES = ("no_barrier", "no_warp_barrier", "too_early", "copies_not_synchronized")


@pytest.mark.parametrize("name", RACES)
def test_a_missing_barrier_is_found_in_any_order_of_threads(name: str) -> None:
    block = 32 if "warp" in name or "copies" in name else 128
    for order in ORDERS:
        card = Card(EmulatedDriver(order=order))
        args = [card.zeros(128, np.float32) for _ in range(2 if "copies" in name else 1)]
        with told(f"{name} at bad.cu:", " with no barrier since thread "):
            run(card, name, *args, block=block)


def test_a_race_names_both_lines(emulated: Card) -> None:
    with told(
        f"no_barrier at bad.cu:{line_of('(threadIdx.x + 37)') - 1}, ",
        "thread (37, 0, 0): writes shared memory with no barrier since thread 0 read it at "
        f"bad.cu:{line_of('(threadIdx.x + 37)')}",
    ):
        run(emulated, "no_barrier", emulated.zeros(128, np.float32), block=128)


def test_reading_what_another_thread_wrote_is_found_where_it_is_later() -> None:
    card = Card(EmulatedDriver(order=1))
    with told(
        "no_barrier_after_writes at bad.cu:", "reads memory with no barrier since thread 127 wrote it at"
    ):
        run(card, "no_barrier_after_writes", card.zeros(128, np.float32), block=128)


def test_order_in_global_memory_changes_the_result_with_the_order_of_threads() -> None:
    first, *others = results("order_of_warps", 128)
    assert not all(np.array_equal(first, other) for other in others)


DIVERGENT = {
    "divergent_barrier": "divergent __syncthreads",
    "barrier_of_some": "no thread can go on",
    "divergent_shuffle": "divergent operation of the warp",
    "shuffle_from_outside": "reads from lane 20, which takes no part",
    "mask_without_me": "lacks the calling lane",
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", DIVERGENT)
def test_divergence(name: str, order: int) -> None:
    card = Card(EmulatedDriver(order=order))
    with told(DIVERGENT[name]):
        run(card, name, card.zeros(32, np.float32))


def test_an_error_names_kernel_line_block_thread_and_array(emulated: Card) -> None:
    y = emulated.zeros(64, np.float32)
    with pytest.raises(KernelError) as caught:
        run(emulated, "write_past", y, np.int32(64), block=128)
    line = line_of("if (threadIdx.x <= n)")
    assert re.fullmatch(
        rf"write_past at bad.cu:{line}, block \(0, 0, 0\), thread \(64, 0, 0\): "
        r"address 0x[0-9a-f]+ is 0 bytes past the end of an array of 256 bytes",
        str(caught.value),
    )


def test_reads_and_writes_out_of_bounds(emulated: Card, y: OnCard) -> None:
    x = emulated.zeros(64, np.float32)
    with told("is 0 bytes past the end of an array of 256 bytes"):
        run(emulated, "read_past", x, y, np.int32(33))
    with told("is 8000 bytes before an array of 128 bytes"):
        run(emulated, "write_before", y)
    run(emulated, "read_past", x, y, np.int32(32))  # the card goes on


def test_what_lies_in_the_slack_of_an_array(emulated: Card) -> None:
    x, y = emulated.zeros(10, np.float32), emulated.zeros(32, np.float32)
    run(emulated, "read_past", x, y, np.int32(0))
    assert (np.abs(emulated.read(y)[10:]) > 1e38).all()
    run(emulated, "write_past", emulated.zeros(10, np.float32), np.int32(10))
    with told("past the end of an array of 40 bytes"):
        emulated.check()


@pytest.mark.parametrize("far", [1, 33])
def test_shared_memory_has_ends(emulated: Card, y: OnCard, far: int) -> None:
    with told("past the end of a shared array of 128 bytes"):
        run(emulated, "past_shared", y, np.int32(far))
    with told("before or past a shared array of 128 bytes"):
        run(emulated, "before_shared", y)
    with told("past the end of a shared array of 128 bytes"):
        run(emulated, "past_dynamic", y, shared=128)
    with told("no dynamic shared memory"):
        run(emulated, "past_dynamic", y)


def test_indices_alignment_and_numbers(emulated: Card, y: OnCard) -> None:
    with told("index_outside at bad.cu", "index 8 is outside of 'float [8]'"):
        run(emulated, "index_outside", y, np.int32(1))
    with told("past_local at bad.cu", "no room for a 'float'"):
        run(emulated, "past_local", y, np.int32(1))
    x, four = emulated.zeros(256, np.float32), emulated.zeros((32, 4), np.float32)
    line = line_of("reinterpret_cast<const float4*>")
    with told(f"bad.cu:{line},", "of a 'const struct float4' is not aligned to 16 bytes"):
        run(emulated, "misaligned", x, four)
    with told("a shift by too many bits"):
        run(emulated, "shift_too_far", y, np.int32(32))
    with told("division by zero"):
        run(emulated, "divide_by_zero", y, np.int32(0))


def test_what_is_fresh_is_not_zero(emulated: Card, y: OnCard) -> None:
    run(emulated, "fresh_shared", y)
    assert np.isnan(emulated.read(y)).all()
    run(emulated, "fresh_dynamic", y, shared=128)
    assert np.isnan(emulated.read(y)).all()
    run(emulated, "fresh_variable", y, np.int32(0))
    assert (np.abs(emulated.read(y)) > 1e38).all()
    assert np.isnan(emulated.read(emulated.empty(4, np.float32))).all()
    assert np.isnan(emulated.read(emulated.empty(4, np.float16))).all()


def test_shared_memory_is_fresh_in_every_block(emulated: Card) -> None:
    y = emulated.zeros(32, np.float32)
    run(emulated, "early_exit", emulated.zeros(128, np.int32), np.int32(128), block=128)
    run(emulated, "fresh_shared", y, grid=4)
    assert np.isnan(emulated.read(y)).all()


def test_how_much_shared_memory_there_is(emulated: Card, y: OnCard) -> None:
    with told("more than the card has"):
        run(emulated, "too_much_shared", y)
    run(emulated, "fresh_dynamic", y, shared=163 << 10)  # the driver opts in
    with told("fresh_dynamic: 166916 bytes of dynamic shared memory; 166912 are allowed"):
        run(emulated, "fresh_dynamic", y, shared=(163 << 10) + 4)
    kernel = emulated.driver.kernel(str(BAD), "past_dynamic")
    with told("; 49152 are allowed"):
        kernel((1,), (32,), (y.address,), shared=50000)


def test_a_full_stack(emulated: Card, y: OnCard) -> None:
    with told("stack is full"):
        run(emulated, "full_stack", y, np.int32(1))


def test_asynchronous_copies(emulated: Card) -> None:
    x, y = emulated.array(np.arange(128, dtype=np.float32)), emulated.zeros(128, np.float32)
    run(emulated, "copies_not_awaited", x, y)
    assert np.isnan(emulated.read(y)).all()
    with told("ended before asynchronous copies"):
        run(emulated, "copies_left", x, y)
    with told("is not in a shared array"):
        run(emulated, "copy_to_elsewhere", x, y)


def test_arguments(emulated: Card, y: OnCard) -> None:
    right = (np.int32(1), np.int64(2), np.float32(3))
    run(emulated, "arguments", y, *right)
    assert emulated.read(y)[0] == 6
    for i, wrong in ((0, np.int64(1)), (0, 1), (1, np.int32(2)), (2, np.float64(3)), (2, np.int32(3))):
        args = (*right[:i], wrong, *right[i + 1 :])
        with told(f"argument {i + 1} must be"):
            run(emulated, "arguments", y, *args)
    with told("argument 0 must be int"):
        run(emulated, "arguments", np.int64(y.address), *right)
    with told("arguments: there are 4 parameters, not 3"):
        run(emulated, "arguments", y, *right[:2])
    with told("65 threads a block are more than 64"):
        run(emulated, "arguments", y, *right, block=65)
    with told("parameter 1 is no pointer, int"):
        run(emulated, "unsigned_parameter", y, np.int32(1))
    with told("has no kernel nothing"):
        run(emulated, "nothing", y)
    for what, sizes in ("grid", (0,)), ("grid", (1, 65536)), ("grid", (1,) * 4), ("block", (1, 1, 65)):
        with told(f"a {what} of {sizes} is not possible"):
            emulated.run(str(BAD), "fresh_shared", **{"grid": 1, "block": 1, what: sizes}, args=[y])


@pytest.mark.parametrize("order", ORDERS)
def test_what_is_no_mistake(order: int) -> None:
    card = Card(EmulatedDriver(order=order))
    y = card.zeros(32, np.int32)
    run(card, "halves_of_a_warp", y)
    v = np.arange(32)
    for _ in range(3):
        v[:16] = v[:16] + v[:16][np.arange(16) ^ 1]
    v[16:] = v[16:] + v[16:][np.arange(16) ^ 2]
    np.testing.assert_array_equal(card.read(y), np.append(v[1:], v[31]) + (v & 1).sum() * 1000)

    y = card.zeros(128, np.int32)
    run(card, "early_exit", y, np.int32(100), block=128)
    np.testing.assert_array_equal(card.read(y)[:100], np.arange(100)[::-1])

    y, count, total = card.zeros(64, np.float32), card.zeros(1, np.int32), card.zeros(1, np.float32)
    run(card, "last_block", y, count, total, grid=64)
    assert card.read(total)[0] == 64 * 65 / 2


def test_an_error_in_a_helping_thread_of_the_host(emulated: Card) -> None:
    kernel = emulated.driver.kernel(str(BAD), "write_past")
    nowhere = 1 << 16
    for workers in (1, 2, 5):
        with told("write_past at bad.cu"):
            kernel((50,), (1024,), (nowhere, np.int32(1024)), workers=workers)


def test_a_fault_of_the_host_stays_its_own() -> None:
    pid = os.fork()
    if pid == 0:
        card = Card(EmulatedDriver())
        run(card, "fresh_shared", card.zeros(32, np.float32))
        os.close(2)
        np.ctypeslib.as_array((np.ctypeslib.ctypes.c_int * 1).from_address(8))[0]
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def test_memory_of_a_card_has_an_end() -> None:
    driver = EmulatedDriver(limit=1000)
    first = driver.allocate(600)
    with pytest.raises(GgrunError, match="500 bytes are wanted, 400 are free"):
        driver.allocate(500)
    assert driver.free_memory() == (400, 1000)
    del first
    assert driver.free_memory() == (1000, 1000)
    assert driver.allocate(1000).address % 256 == 0


def test_what_a_card_can_reach() -> None:
    one, other = EmulatedDriver(name="one"), EmulatedDriver(name="other")
    here, there = one.allocate(256), other.allocate(256)
    kernel = one.kernel(str(BAD), "fresh_shared")
    one.launch(kernel, (1,), (32,), (there.address,))
    with told("argument 0 of fresh_shared: 0 bytes at", "are in no array of one"):
        one.stream.synchronize()
    host = np.zeros(65, np.float32)
    for copy in (
        lambda: one.upload(here.address, host),
        lambda: one.download(host, here.address),
        lambda: one.copy(here.address, there.address, 4),
        lambda: one.copy(here.address + 4, here.address, 256),
        lambda: one.upload(1 << 16, host),
    ):
        copy()
        with told("a copy", "are in no array of one"):
            one.stream.synchronize()


def test_memory_that_was_freed_too_early() -> None:
    driver = EmulatedDriver()
    memory = driver.allocate(256)
    driver.launch(driver.kernel(str(BAD), "fresh_shared"), (1,), (32,), (memory.address,))
    del memory
    with told("are in no array of emulated CUDA"):
        driver.stream.synchronize()


def test_work_is_late_and_a_missing_event_shows() -> None:
    """One card's numbers go by way of the host to another: for some seeds too early, if it does not wait."""
    host = np.zeros(32, np.float32)

    def sent(seed: int, wait: bool) -> bool:
        schedule = Schedule(seed)
        one, other = (EmulatedDriver(schedule=schedule) for _ in range(2))
        here, there = one.allocate(128), other.allocate(128)
        between, back = np.zeros(32, np.float32), np.zeros(32, np.float32)
        host[:] = 7
        one.upload(here.address, host)
        one.download(between, here.address)
        if wait:
            other.stream.wait(one.stream.record())
        other.upload(there.address, between)
        other.download(back, there.address)
        assert not back.any()  # nothing is done yet
        for driver in (other, one):
            driver.stream.synchronize()
        return bool((back == 7).all())

    assert all(sent(seed, wait=True) for seed in range(8))
    assert not all(sent(seed, wait=False) for seed in range(8))
