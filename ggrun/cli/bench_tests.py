"""The tests of llama-bench: which there are, and what comes of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ggrun.cli.bench_used import Used


@dataclass(frozen=True)
class Setup:
    """How a model is loaded."""

    model: Path
    n_batch: int
    n_ubatch: int
    type_k: str
    type_v: str
    n_threads: int


@dataclass(frozen=True)
class Case:
    """n_prompt tokens in batches, then n_gen one by one, after n_depth that are not timed."""

    n_prompt: int
    n_gen: int
    n_depth: int

    @property
    def name(self) -> str:
        """As llama-bench has it: pp512, tg128, pp512+tg128, tg128 @ d512."""
        parts = [f"{word}{n}" for word, n in (("pp", self.n_prompt), ("tg", self.n_gen)) if n]
        return "+".join(parts) + (f" @ d{self.n_depth}" if self.n_depth else "")

    @property
    def positions(self) -> int:
        """The context that it needs."""
        return self.n_prompt + self.n_gen + self.n_depth


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a model. weight_bytes and cell_bytes are what a token takes from memory in decode."""

    type: str
    size: int
    n_params: int
    weight_bytes: int
    cell_bytes: int  # for each position


@dataclass(frozen=True)
class Result:
    """The times of a test's repetitions.

    threads    of the CPU's, how many took part: fewer than there are when other programs had their cores;
               None where it has no layers
    """

    setup: Setup
    model: ModelFacts
    used: "Used"
    case: Case
    test_time: str
    samples_ns: list[int]
    threads: float | None

    @property
    def samples_ts(self) -> list[float]:
        """Tokens a second, of each repetition."""
        return [1e9 * (self.case.n_prompt + self.case.n_gen) / ns for ns in self.samples_ns]

    @property
    def ts(self) -> tuple[float, float]:
        """Tokens a second: the mean, and the standard deviation."""
        return fmean(self.samples_ts), _deviation(self.samples_ts)

    @property
    def token_bytes(self) -> int | None:
        """The bytes that a token reads, in the middle of a generation; None where a prompt is timed too."""
        if self.case.n_prompt:
            return None
        positions = 2 * self.case.n_depth + self.case.n_gen + 1
        return self.model.weight_bytes + self.model.cell_bytes * positions // 2

    @property
    def read(self) -> float | None:
        """Bytes a second that decode reads."""
        return None if self.token_bytes is None else self.token_bytes * self.ts[0]

    @property
    def share(self) -> float | None:
        """Of the memory's bandwidth; None where nothing is known of it."""
        return None if self.read is None or not self.used.bandwidth else self.read / self.used.bandwidth

    def fields(self) -> dict[str, Any]:
        """What the formats for machines have: llama-bench's names, then ours; None where there is nothing."""
        from ggrun import __version__

        setup, model, case = self.setup, self.model, self.case
        speed, deviation = self.ts
        return {
            "build_commit": f"ggrun {__version__}", "backends": self.used.backends,
            "model_filename": str(setup.model), "model_type": model.type, "model_size": model.size,
            "model_n_params": model.n_params, "n_batch": setup.n_batch, "n_ubatch": setup.n_ubatch,
            "n_threads": setup.n_threads, "mean_threads": self.threads,
            "type_k": setup.type_k, "type_v": setup.type_v,
            "n_prompt": case.n_prompt, "n_gen": case.n_gen, "n_depth": case.n_depth,
            "test_time": self.test_time, "avg_ns": int(fmean(self.samples_ns)),
            "stddev_ns": int(_deviation(self.samples_ns)), "avg_ts": speed, "stddev_ts": deviation,
            "token_bytes": self.token_bytes, "read_bytes_per_second": self.read,
            "memory_bandwidth": self.used.bandwidth, "memory_share": self.share,
        }  # fmt: skip


def all_tests(options: dict[str, Any]) -> Iterator[tuple[Setup, Case]]:
    """Every test with every setup, in llama-bench's order; options: lists by the names of the fields."""
    names = ("model", "n_batch", "n_ubatch", "type_k", "type_v", "n_threads")
    for chosen in product(*(options[name] for name in names)):
        for depth in options["n_depth"]:
            tests = [(n, 0) for n in options["n_prompt"]] + [(0, n) for n in options["n_gen"]]
            for n_prompt, n_gen in tests + options["n_pg"]:
                if n_prompt or n_gen:
                    yield Setup(*chosen), Case(n_prompt, n_gen, depth)


def _deviation(samples: Sequence[float]) -> float:
    return stdev(samples) if len(samples) > 1 else 0.0
