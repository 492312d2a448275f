"""Models as tests need them: loaded in some way, tests run on one engine."""

import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ggrun.cli.bench_model import model_bytes, model_parameters, model_type
from ggrun.cli.bench_tests import Case, ModelFacts, Setup
from ggrun.cli.bench_used import Measured, readers, used
from ggrun.devices.cpu import Cpu
from ggrun.devices.host_memory import host_memory
from ggrun.devices.local import everything
from ggrun.engine.generate import usual_top
from ggrun.engine.loaded import Sums
from ggrun.errors import GgrunError
from ggrun.gguf import GGUF
from ggrun.plan.facts import PAGE, pages
from ggrun.plan.facts import ModelFacts as PlanFacts
from ggrun.plan.options import PlanOptions
from ggrun.rpc.placed import Placed, Where


class Session:
    """A model with one setup.

    The token at each position is always the same (random) one. So whatever stands in the cache before a depth
    is right for that depth: it is computed once.

    measured    takes what is, so that the next session need not measure it again
    """

    def __init__(
        self, setup: Setup, placement: dict[str, Any], sums: dict[str, Any], measured: Measured
    ) -> None:
        self._model, self._setup = _opened(setup.model), setup
        how: Sums = sums["all_reduce"], sums["wire"]
        self._plan_facts = PlanFacts.from_outline(self._model)
        self._config = self._plan_facts.config
        self._top = usual_top(self._config.vocab)
        self._placement = dict(placement)
        hardware = self._placement.pop("hardware")
        self._hardware = everything() if hardware is None else hardware
        own = {name: self._placement.pop(name) for name in ("plan", "p2p")}
        self._rpc = self._placement.pop("rpc")
        self._where = Where(self._hardware, setup.n_threads, sums=how, **own)
        self._measured = measured
        self._placed: Placed | None = None
        self.facts = self._facts()

    def check(self, case: Case) -> None:
        """GgrunError when there is no room for the context of a test."""
        if self._hardware != "cpu" or self._where.plan or self._rpc:
            return  # several memories: the planner asks them
        needed = pages(case.positions) * PAGE * self.facts.cell_bytes
        if needed > (free := host_memory().available):
            raise GgrunError(
                f"{case.name}: the KV cache of {case.positions} positions takes {needed / 2**30:.1f} GiB, "
                f"{free / 2**30:.1f} GiB are free: give less of -p, -n or -d, or -ctk q8_0 -ctv q8_0"
            )

    def load(self, positions: int) -> None:
        """Get ready for tests of up to so many positions; DoesNotFit when there is no room.

        From then on there is `used`.
        """
        s, n_ubatch = self._setup, min(self._setup.n_ubatch, self._setup.n_batch)
        cache: dict[str, Any] = {"cache_type_k": s.type_k, "cache_type_v": s.type_v}
        wishes = PlanOptions(n_ctx=positions, n_ubatch=n_ubatch, **cache, **self._placement)
        self._placed = Placed(self._model, wishes, self._where, self._rpc)
        self._engine = self._placed.engine
        self.used = used(self._placed, s.n_threads, self._measured)
        random = np.random.default_rng(1)
        self._tokens: list[int] = random.integers(self._config.vocab, size=positions).tolist()

    def samples(
        self, case: Case, repetitions: int, warm_up: bool, tell: Callable[[str], None]
    ) -> tuple[list[int], float | None]:
        """The nanoseconds of each repetition, and how many of the CPU's threads took part; None: it did not.

        `tell` is told what comes next.
        """
        if warm_up:
            tell("warm-up")
            self._engine.cache.truncate(0, case.n_depth)
            self._compute(case.n_prompt, self._setup.n_batch)
            self._compute(min(case.n_gen, 1), 1)
        assert self._placed, "load comes first"
        devices = (self._placed.devices.get(name) for name in readers(self._placed.planned.plan))
        pools = [device.pool for device in devices if isinstance(device, Cpu)]
        for pool in pools:
            pool.mean_threads()  # those of what was before
        samples = []
        for i in range(repetitions):
            tell(f"run {i + 1}/{repetitions}")
            samples.append(self._sample(case))
        return samples, sum(pool.mean_threads() for pool in pools) if pools else None

    def interrupt(self) -> None:
        """End what is being computed; from any thread."""
        if self._placed:
            self._placed.engine.interrupt()

    def close(self) -> None:
        """Let go of devices and workers."""
        if self._placed:
            self._placed.close()

    def _facts(self) -> ModelFacts:
        model, setup = self._model, self._setup
        return ModelFacts(
            type=model_type(model),
            size=model_bytes(model),
            n_params=model_parameters(model),
            weight_bytes=self._plan_facts.token_bytes,
            cell_bytes=self._plan_facts.position_bytes(setup.type_k, setup.type_v),
        )

    def _sample(self, case: Case) -> int:
        self._step_to(case.n_depth)
        start = time.perf_counter_ns()
        self._compute(case.n_prompt, self._setup.n_batch)
        self._compute(case.n_gen, 1)
        return time.perf_counter_ns() - start

    def _step_to(self, depth: int) -> None:
        """Step back to a depth, or compute what is missing up to it."""
        held = self._engine.cache.length(0)
        self._engine.cache.truncate(0, depth)
        self._compute(max(0, depth - held), self._setup.n_batch)

    def _compute(self, n: int, step: int) -> None:
        """The next n tokens, `step` at a time; what comes to the host is what `ggrun run` asks for."""
        begin = self._engine.cache.length(0)
        for i in range(begin, begin + n, step):
            self._engine.evaluate(self._tokens[i : min(i + step, begin + n)], top=self._top)


@lru_cache(maxsize=1)
def _opened(path: Path) -> GGUF:
    return GGUF(path)
