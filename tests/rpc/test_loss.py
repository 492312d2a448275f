"""A worker goes away, at any moment: the text goes on, or ends with one clear line."""

import random
import threading
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from ggrun import LLM
from ggrun.bundled import demo_model
from ggrun.errors import GgrunError
from ggrun.rpc import ggrun_pb2 as pb
from ggrun.rpc.placed import RpcOptions
from tests.rpc.conftest import Start
from tests.rpc.processes import WorkerProcess, plan_of
from tests.rpc.proxy import Proxy
from tests.waiting import PATIENCE

MODEL, HALVES = Path(demo_model()), 16
PROMPT = "The king ordered the"
SAMPLING = {"temp": 0.0, "ignore_eos": True, "max_tokens": 60}


@pytest.fixture(scope="module")
def want() -> str:
    with LLM(MODEL, n_ctx=256, threads=1) as llm:
        return "".join(llm.generate(PROMPT, **SAMPLING))


def options(*workers: WorkerProcess, told: list[str] | None = None) -> RpcOptions:
    addresses = ",".join(worker.address for worker in workers)
    return RpcOptions(addresses, insecure=1, tell=(told if told is not None else []).append)


def test_killed_in_the_middle_of_an_answer(start: Start, want: str) -> None:
    a, b, told = start("--insecure", name="a"), start("--insecure", name="b"), []
    plan = plan_of(MODEL, ("cpu", 4), (a.device(), 8), (b.device(), HALVES))
    with LLM(MODEL, n_ctx=256, threads=1, plan=plan, rpc=options(a, b, told=told)) as llm:
        pieces = llm.generate(PROMPT, **SAMPLING)
        got = [next(pieces) for _ in range(5)]
        b.kill()
        got += list(pieces)
        assert "".join(got) == want
        assert [b.address in line for line in told] == [True]
        assert b.address not in llm.plan.to_json()
        assert "".join(llm.generate(PROMPT, **SAMPLING)) == want
    b.start(str(b.port))
    with LLM(MODEL, n_ctx=256, threads=1, plan=plan, rpc=options(a, b)) as llm:  # the next load uses it
        assert "".join(llm.generate(PROMPT, **SAMPLING)) == want
        assert b.address in llm.plan.to_json()


@pytest.mark.parametrize("seed", [1, *(pytest.param(i, marks=pytest.mark.slow) for i in range(2, 10))])
def test_a_long_answer_goes_on_as_from_what_was_written(start: Start, seed: int) -> None:
    """By the usual sizes of batches: the cache that is computed again is not the same to the bit."""
    worker, rng = start("--insecure"), np.random.default_rng(seed)
    tokens, end = rng.integers(5, 250, 20).tolist(), rng.integers(100, 400)
    plan = plan_of(MODEL, ("cpu", 4), (worker.device(), HALVES))
    with LLM(MODEL, n_ctx=512, threads=1, plan=plan, rpc=options(worker)) as llm:
        ids = llm.generate_tokens(tokens, temp=0.0)
        got = [next(ids) for _ in range(end)]
        worker.kill()
        got += list(ids)
    with LLM(MODEL, n_ctx=512, threads=1) as llm:
        engine, (*before, token) = llm._placed.engine, [*tokens, *got[:end]]
        engine.decode(before)
        for each in got[end:]:
            token = int(engine.decode([token])[0].argmax())
            assert token == each


def test_workers_that_lose_each_other(start: Start, want: str) -> None:
    """The way from one to the next breaks, and both are there: the text goes on without the second."""
    a, b, told = start("--insecure", name="a"), start("--insecure", name="b"), []
    with Proxy(b.port) as proxy:
        plan = plan_of(MODEL, (a.device(), 8), (f"{proxy.address}/cpu:0:1GB", HALVES))
        rpc = RpcOptions(f"{a.address},{proxy.address}", insecure=1, tell=told.append)
        with LLM(MODEL, n_ctx=256, threads=1, plan=plan, rpc=rpc) as llm:
            pieces = llm.generate(PROMPT, **SAMPLING)
            got = [next(pieces) for _ in range(5)]
            # The client's two connections are older than the two of the other worker.
            proxy.cut(since=2)
            got += list(pieces)
    assert "".join(got) == want
    assert f"{proxy.address}: the worker is lost to {a.address}" in told[0]


def test_one_of_two_that_a_worker_pushes_to(start: Start, want: str) -> None:
    """The one that is lost is left out, and not the other."""
    a, b, c = (start("--insecure", name=name) for name in "abc")
    told: list[str] = []
    with Proxy(c.port) as proxy:
        at_c = f"{proxy.address}/cpu:0:1GB"
        plan = plan_of(MODEL, (a.device(), 4), (b.device(), 8), (a.device(), 12), (at_c, HALVES))
        rpc = RpcOptions(f"{a.address},{b.address},{proxy.address}", insecure=1, tell=told.append)
        with LLM(MODEL, n_ctx=256, threads=1, plan=plan, rpc=rpc) as llm:
            pieces = llm.generate(PROMPT, **SAMPLING)
            got = [next(pieces) for _ in range(5)]
            proxy.cut(since=2)  # as in the test before
            got += list(pieces)
    assert "".join(got) == want
    assert [line.partition(": ")[0] for line in told] == [proxy.address]


def test_a_session_that_the_worker_ends(start: Start, want: str) -> None:
    """Whatever its reason is: the text goes on without it, and so does the next."""
    worker, told = start("--insecure"), []
    plan = plan_of(MODEL, ("cpu", 4), (worker.device(), HALVES))
    with LLM(MODEL, n_ctx=256, threads=1, plan=plan, rpc=options(worker, told=told)) as llm:
        pieces = llm.generate(PROMPT, **SAMPLING)
        got = [next(pieces) for _ in range(5)]
        link = llm._placed._workers.hosts[worker.address].link
        link.send(ping=pb.Ping(ballast=bytes(9 << 20)))  # more than it takes
        got += list(pieces)
        assert "".join(got) == want
        assert "".join(llm.generate(PROMPT, **SAMPLING)) == want
    assert told == [
        f"{worker.address}: 9437189 bytes of ping came: up to 1048576 are possible now: going on without it"
    ]


def test_when_nothing_fits_the_conversation_is_kept(start: Start, want: str) -> None:
    """And the worker is used again when it is back: what this machine has is too little for all of it."""
    worker, told = start("--insecure"), []
    plan = plan_of(MODEL, ("cpu:0:8MB", 2), (worker.device(), HALVES))
    with LLM(
        MODEL, n_ctx=256, threads=1, devices="cpu:0:8MB", plan=plan, rpc=options(worker, told=told)
    ) as llm:
        pieces = llm.generate(PROMPT, **SAMPLING)
        got = [next(pieces) for _ in range(5)]
        worker.kill()
        short = r"; what is left is too small: .*: does not fit: cpu:0:8MB needs"
        with pytest.raises(GgrunError, match=f"^{worker.address}: the worker .*{short}"):
            list(pieces)
        with pytest.raises(
            GgrunError, match=f"^{worker.address}: cannot be reached: Connection refused{short}"
        ):
            next(llm.generate(PROMPT, **SAMPLING))
        worker.start(str(worker.port))
        assert "".join(llm.generate(PROMPT, **SAMPLING)) == want
        assert llm.plan == plan
        assert want.startswith("".join(got))
    assert told == []


LONG = " ".join(["The king ordered the queen to send for the son of the old woman."] * 8)
PHASES = ("load", "prompt", "answer")


class Phases:
    """What a client is doing, and since when."""

    def __init__(self) -> None:
        self.now, self.since = "", dict[str, float]()
        self._begun = {phase: threading.Event() for phase in (*PHASES, "end")}

    def begin(self, phase: str) -> None:
        self.now = phase
        self.since.setdefault(phase, time.monotonic())
        self._begun[phase].set()

    def wait(self, phase: str) -> None:
        assert self._begun[phase].wait(PATIENCE)

    def lengths(self) -> dict[str, float]:
        """The seconds that each of them took."""
        return {a: self.since[b] - self.since[a] for a, b in pairwise((*PHASES, "end"))}


class Killer(threading.Thread):
    """Kills a worker so many seconds after a phase has begun."""

    def __init__(self, worker: WorkerProcess, phases: Phases, phase: str, seconds: float) -> None:
        super().__init__(daemon=True)
        self._worker, self._phases, self._phase, self._seconds = worker, phases, phase, seconds
        self.killed_in, self.at = "", 0.0
        self.start()

    def run(self) -> None:
        self._phases.wait(self._phase)
        time.sleep(self._seconds)
        self.killed_in, self.at = self._phases.now, time.monotonic()
        self._worker.kill()


@pytest.fixture(scope="module")
def long_want() -> str:
    with LLM(MODEL, n_ctx=256, threads=1) as llm:
        return "".join(llm.generate(LONG, **SAMPLING))


def answered(two: list[WorkerProcess], phases: Phases, told: list[str]) -> tuple[str, str]:
    """Load, read the long prompt and answer it: the answer, and the plan at the end."""
    plan = plan_of(MODEL, ("cpu", 4), (two[0].device(), 8), (two[1].device(), HALVES))
    # The first word of it comes when both workers are connected.
    rpc = replace(options(*two, told=told), progress=lambda *_: phases.begin("load"))
    got = ""
    with LLM(MODEL, n_ctx=256, threads=1, n_ubatch=2, plan=plan, rpc=rpc) as llm:
        phases.begin("prompt")
        for piece in llm.generate(LONG, **SAMPLING):
            phases.begin("answer")
            got += piece
            time.sleep(0.003)
        phases.begin("end")
        return got, llm.plan.to_json()


@pytest.mark.parametrize(
    ("shares", "limit"),
    [((1, 1, 1), PATIENCE), pytest.param((17, 17, 16), 15.0, marks=pytest.mark.slow)],
    ids=["few", "50"],
)
def test_killed_at_any_moment(
    start: Start, long_want: str, shares: tuple[int, int, int], limit: float
) -> None:
    """Of loading, of the prompt, of the answer: either of two workers, of which one pushes to the other."""
    two = [start("--insecure", "--no-cache", name=name) for name in "ab"]  # so weights are always sent
    undisturbed, rng = Phases(), random.Random(1)
    assert answered(two, undisturbed, [])[0] == long_want
    shown, missed, longest = dict.fromkeys(PHASES, 0), 0, 0.0
    for phase, share in zip(PHASES, shares, strict=True):
        while shown[phase] < share:
            victim, phases, told = rng.choice(two), Phases(), list[str]()
            killer = Killer(victim, phases, phase, rng.uniform(0, undisturbed.lengths()[phase]))
            got, plan = answered(two, phases, told)
            killer.join()
            assert got == long_want
            # The last words of an answer come when there is nothing left for the worker to do.
            if killer.killed_in == phase and (told or phase != "answer"):
                shown[phase] += 1
                longest = max(longest, phases.since["end"] - killer.at)
                assert [line.partition(": ")[0] for line in told] == [victim.address]
                assert victim.address not in plan
            else:  # it came when that was over
                missed += 1
                assert missed < 50
            victim.start(str(victim.port))
    print(f"killed in {shown}, {missed} more too late for that; {longest:.2f} s to the end at most")
    assert longest < limit
