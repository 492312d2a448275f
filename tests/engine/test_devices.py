"""Models on several devices, when things go wrong: interrupts, errors, forks, ends, many at once."""

import gc
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from ggrun import LLM, GgrunError, Interrupted
from ggrun.gguf import GGUF
from ggrun.plan import Plan
from tests.plans import Plans
from tests.tiny import Tiny
from tests.waiting import ended, in_a_fork, in_time, workers

DEVICES = {
    "cpu": ("cpu:0", "cpu:1", "cpu:2", "cpu:3"),
    "emulated": ("emulated:0", "emulated:1", "emulated:2", "emulated:3"),
    "mixed": ("cpu", "emulated:0", "cpu:1", "emulated:1"),
}
TOKENS = [i % 50 for i in range(40)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return Tiny(layers=3).write(tmp_path / "model.gguf")


def plan(path: Path, kind: str, devices: str) -> Plan:
    return Plans(GGUF(path), DEVICES[devices])[kind]


@pytest.fixture(params=[(kind, d) for kind in ("layer 2", "row 2", "everything") for d in DEVICES])
def llm(path: Path, request: pytest.FixtureRequest) -> Iterator[LLM]:
    with LLM(path, plan=plan(path, *request.param), n_ubatch=8) as model:
        yield model


def test_an_error_in_one_program(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever it is, the caller gets it, nothing hangs, and the model can be used again."""
    want = llm.logits(TOKENS)
    stages = llm._engine._pipeline._stages
    for runner in (runner for stage in stages for runner in stage.runners):
        program = runner.segments[-1].program

        def fail() -> None:
            raise GgrunError("this one")

        with monkeypatch.context() as patch:
            patch.setattr(program, "_walk", fail)

            def work() -> None:
                with pytest.raises(GgrunError, match="this one"):
                    llm.logits(TOKENS)

            in_time(work)
        in_time(lambda: np.testing.assert_array_equal(llm.logits(TOKENS), want))


def test_an_interrupt_stays_until_a_text_begins(llm: LLM) -> None:
    want, text = llm.logits(TOKENS), llm.generate_tokens(TOKENS[:5])
    next(text)
    llm.interrupt()

    def work() -> None:
        with pytest.raises(Interrupted):
            next(text)

    in_time(work)
    in_time(lambda: np.testing.assert_array_equal(llm.logits(TOKENS), want))


@pytest.mark.parametrize("kind", ["layer 2", "row 2"])
def test_interrupting_a_prompt(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has not begun by then never does; another device may be amid its last program."""
    path = Tiny(layers=8, width=512, ff=2048, context=4096).write(tmp_path / "slow.gguf")
    tokens = [i % 50 for i in range(1000)]
    with LLM(path, plan=plan(path, kind, "cpu"), n_ubatch=250, threads=2) as slow:
        want = slow.logits(tokens)
        for after in (0, 1, 4):
            done: list[None] = []

            def interrupted(
                run: Callable[..., None], table: np.ndarray, after: int = after, done: list[None] = done
            ) -> None:
                if len(done) >= after:
                    slow.interrupt()
                run(table)
                done.append(None)

            with monkeypatch.context() as patch:
                for device in slow._placed.devices.values():
                    patch.setattr(device.pool, "run", partial(interrupted, device.pool.run))
                with pytest.raises(Interrupted):
                    slow.logits(tokens)
            assert after <= len(done) <= after + 1
        assert np.array_equal(slow.logits(tokens), want)


def test_a_second_ctrl_c_while_the_devices_come_to_rest(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with LLM(path, plan=plan(path, "layer 2", "cpu"), n_ubatch=8) as llm:
        want = llm.logits(TOKENS)
        stream = llm._placed.devices["cpu:0"].stream

        def pressed() -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(stream, "synchronize", pressed)
            patch.setattr(stream, "abandon", pressed)
            with pytest.raises(KeyboardInterrupt):
                llm.logits(TOKENS)
        in_time(lambda: np.testing.assert_array_equal(llm.logits(TOKENS), want))


@pytest.mark.parametrize("devices", DEVICES)
def test_a_closed_model_says_so(devices: str, path: Path) -> None:
    llm = LLM(path, plan=plan(path, "layer 2", devices))
    llm.close()
    llm.close()

    def work() -> None:
        with pytest.raises(GgrunError, match="closed"):
            llm.logits(TOKENS)

    in_time(work)


def forever(llm: LLM, want: np.ndarray) -> None:
    while True:
        np.testing.assert_array_equal(llm.logits(TOKENS), want)


def test_closing_while_it_computes(path: Path) -> None:
    for _ in range(10):
        llm = LLM(path, plan=plan(path, "row 2", "cpu"), n_ubatch=8)
        want = llm.logits(TOKENS)
        closer = threading.Timer(0.01, llm.close)
        closer.start()

        def work(llm: LLM = llm, want: np.ndarray = want) -> None:
            with pytest.raises(GgrunError, match="closed"):
                forever(llm, want)

        in_time(work)
        closer.join()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_fork(path: Path) -> None:
    with LLM(path, plan=plan(path, "layer 2", "cpu")) as llm:
        want = llm.logits(TOKENS)
        assert in_a_fork(lambda: llm.logits(TOKENS) and None) == 7
        assert in_a_fork(llm.close) == 0
        np.testing.assert_array_equal(llm.logits(TOKENS), want)


def test_dropped_models_end_their_threads(path: Path) -> None:
    before = workers()
    llm = LLM(path, plan=plan(path, "everything", "cpu"), threads=8)
    llm.logits(TOKENS)
    own = workers() - before
    assert len(own) == 4 + 4
    del llm
    gc.collect()
    ended(own)


def test_several_plans_at_once(path: Path) -> None:
    kinds = ("none", "layer 2", "row 2", "everything")
    models = [LLM(path, plan=plan(path, kind, devices), n_ubatch=8) for kind in kinds for devices in DEVICES]
    want = [llm.logits(TOKENS) for llm in models]

    def work(i: int) -> bool:
        return all(np.array_equal(models[i].logits(TOKENS), want[i]) for _ in range(5))

    with ThreadPoolExecutor(len(models)) as pool:
        assert all(pool.map(work, range(len(models))))
    for llm in models:
        llm.close()
