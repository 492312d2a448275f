"""Compare ggrun with llama.cpp on the same files: python tools/compare_llama_cpp.py MODEL.gguf [-t 1,2] ...

Needs llama-cpp-python, whose C interface is called directly: build it on this machine, so that it uses all
of its CPU. llama.cpp runs with weights repacked and plain; for each figure the better of the two counts.

Each engine is a process of its own (compare_worker.py). They take turns inside every repetition, with a
pause between them, so that noise and the spinning of idle threads hit none alone. All get the same tokens,
drawn at random; nobody samples; every test is preceded by one that is not timed.

llama.cpp has what is best for it, which are llama-cli's defaults: n_batch 2048, n_ubatch 512, as many threads
for a prompt as for generation, flash attention auto (-fa changes it), logits of the last token only. Its
start does not pay for the Python half of its package, which is left out.

Use a quiet machine: threads that wait for each other by spinning, as llama.cpp's do, lose far more than
others when they have to share a core. Samples that lie far apart are the sign, and no basis for a ratio.

start   from a new process to the first token, behind a prompt of 8; files and compiled kernels are warm
ppN     a prompt of N tokens;  tgN @ dD: N tokens, one at a time, behind D others
rss     resident memory after the first token (start), and at the largest during all tests (peak); the mapped
        file counts once. anonymous: what of it, at the end, is no page of a file
logits  of random tokens: relative RMS distance, sqrt(mean((a-b)^2) / mean(b^2)), and the largest |a-b|
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

TOOL = "compare_llama_cpp"
ENGINES = {"ggrun": "ggrun", "repack": "llama.cpp repack", "plain": "llama.cpp plain"}
OURS, THEIRS = "ggrun", ("repack", "plain")
PAIRS = ((OURS, "repack"), (OURS, "plain"), THEIRS)
PROMPTS = ((1, 0), (8, 0), (64, 0), (256, 0), (72, 8))
"""Logits are compared for so many tokens, of which so many one at a time."""
CACHE_KINDS = ("f16", "f32", "bf16", "q8_0")  # what both have


class CompareError(Exception):
    """A comparison cannot go on; str() is the one line that says why."""


class Worker(Protocol):
    """An engine that has a model loaded."""

    hello: dict[str, Any]
    start: float

    def ask(self, do: str, **arguments: Any) -> Any:
        """The answer to a command of compare_worker.py."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


Launch = Callable[[str, dict[str, Any]], Worker]


class Process:
    """A worker in a process; `start` is how many seconds it took to its first token."""

    def __init__(self, engine: str, settings: dict[str, Any]) -> None:
        self._engine = engine
        # An engine's own words must not fill a pipe that nobody reads; the last ones say why it ended.
        self._log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 -- __exit__ closes it
        command = [sys.executable, str(Path(__file__).with_name("compare_worker.py"))]
        begin = time.perf_counter()
        self._process = subprocess.Popen(
            [*command, json.dumps({"engine": engine, **settings})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            # An installed package has its bytecode, and so has a checkout from its second start on.
            env={name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
        )
        self.hello: dict[str, Any] = self._answer()
        self.start = time.perf_counter() - begin

    def ask(self, do: str, **arguments: Any) -> Any:
        """The answer to a command; CompareError when there is none."""
        assert self._process.stdin
        # A worker that has ended gives no answer either, and why is told there.
        with suppress(BrokenPipeError):
            print(json.dumps({"do": do, **arguments}), file=self._process.stdin, flush=True)
        return self._answer()["value"]

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        found: dict[str, Any] = json.loads(line) if line else {"error": self._last_words()}
        if "error" in found:
            self.__exit__(None, None, None)
            raise CompareError(f"{ENGINES[self._engine]}: {found['error']}")
        return found

    def _last_words(self) -> str:
        status = self._process.wait()
        self._log.seek(0)
        lines = [line.strip() for line in self._log if line.strip()]
        return f"ended with status {status}: {lines[-1] if lines else 'it said nothing'}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout, self._log):
            if pipe:
                with suppress(BrokenPipeError):
                    pipe.close()
        self._process.wait()


@dataclass
class Row:
    """A test of one model with one number of threads: every engine's samples."""

    model: str
    threads: int
    test: str
    unit: str
    more_is_better: bool
    samples: dict[str, list[float]] = field(default_factory=lambda: {engine: [] for engine in ENGINES})

    def median(self, engine: str) -> float:
        return median(self.samples[engine])

    def best(self) -> str:
        """The one of llama.cpp's settings that counts."""
        return (max if self.more_is_better else min)(THEIRS, key=self.median)

    def ratio(self) -> float:
        """ggrun / the better of llama.cpp's."""
        return self.median(OURS) / self.median(self.best())


@dataclass(frozen=True)
class Distance:
    """How far the logits of two engines are from each other."""

    model: str
    threads: int
    test: str
    pair: tuple[str, str]
    relative: float
    largest: float


def distance(a: NDArray[np.float32], b: NDArray[np.float32]) -> tuple[float, float]:
    """Relative RMS distance of a from b, and the largest difference."""
    wide = b.astype(np.float64)
    apart = a - wide
    return float(np.sqrt(np.mean(apart**2) / np.mean(wide**2))), float(np.abs(apart).max())


@dataclass
class Comparison:
    """Runs every test of one model with one number of threads."""

    model: str
    threads: int
    o: argparse.Namespace
    launch: Launch = Process
    about: dict[str, str] = field(default_factory=dict)

    def run(self) -> Iterator[Row | Distance]:
        """Every result, as soon as it is there."""
        yield from self._starts()
        with ExitStack() as stack:
            workers = {engine: stack.enter_context(self._open(engine)) for engine in ENGINES}
            self.about = {engine: worker.hello["about"] for engine, worker in workers.items()}
            for n in self.o.p:
                yield self._speed(workers, f"pp{n}", n, {"do": "pp", "n": n})
            # A deeper context grows out of a less deep one, so that it is filled once.
            for depth in sorted(self.o.d):
                for n in self.o.n:
                    name = f"tg{n} @ d{depth}" if depth else f"tg{n}"
                    yield self._speed(workers, name, n, {"do": "tg", "n": n, "depth": depth})
            memory = {engine: worker.ask("memory") for engine, worker in workers.items()}
            yield self._row("rss peak", "MiB", False, {e: [m["peak"]] for e, m in memory.items()})
            yield self._row("anonymous", "MiB", False, {e: [m["anonymous"]] for e, m in memory.items()})
            yield from self._distances(workers)

    def _open(self, engine: str) -> Worker:
        return self.launch(engine, {
            "model": self.model,
            "threads": self.threads,
            "n_ctx": context(self.o),
            "cache_k": self.o.ctk,
            "cache_v": self.o.ctv,
            "flash": self.o.fa,
        })  # fmt: skip

    def _row(
        self, test: str, unit: str, more_is_better: bool, samples: dict[str, list[float]] | None = None
    ) -> Row:
        row = Row(Path(self.model).stem, self.threads, test, unit, more_is_better)
        row.samples.update(samples or {})
        return row

    def _starts(self) -> Iterator[Row]:
        start, rss = self._row("start", "s", False), self._row("rss start", "MiB", False)
        for repetition in range(self.o.r + 1):
            for engine in ENGINES:
                with self._open(engine) as worker:
                    if repetition == 0:  # reads the file, and compiles what the tests will need
                        worker.ask("pp", n=64)
                        continue
                    start.samples[engine].append(worker.start)
                    rss.samples[engine].append(worker.hello["memory"]["rss"])
        yield from (start, rss)

    def _speed(self, workers: dict[str, Worker], test: str, n: int, command: dict[str, Any]) -> Row:
        row = self._row(test, "t/s", True)
        for repetition in range(self.o.r + 1):
            for engine, worker in workers.items():
                time.sleep(self.o.pause)
                seconds = worker.ask(**command)
                if repetition:
                    row.samples[engine].append(n / seconds)
        return row

    def _distances(self, workers: dict[str, Worker]) -> Iterator[Distance]:
        for n, single in PROMPTS:
            test = f"{n - single} + {single} tokens one at a time" if single else f"{n} token{'s' * (n > 1)}"
            with tempfile.TemporaryDirectory() as folder:
                found = {
                    engine: np.load(worker.ask("logits", n=n, single=single, path=f"{folder}/{engine}.npy"))
                    for engine, worker in workers.items()
                }
            for a, b in PAIRS:
                name = Path(self.model).stem
                yield Distance(name, self.threads, test, (a, b), *distance(found[a], found[b]))


def context(o: argparse.Namespace) -> int:
    """Positions that hold every test."""
    most: int = max([n for n, _ in PROMPTS] + o.p + [d + n for d in o.d for n in o.n])
    return -(-most // 256) * 256


def number(x: float) -> str:
    """Three digits or more, none wasted."""
    return f"{x:.0f}" if x >= 1000 else f"{x:.3g}"


def markdown_row(row: Row) -> str:
    """A line of the table; the star is on the setting of llama.cpp that counts."""
    cells = [row.model, str(row.threads), f"{row.test} {row.unit}"]
    for engine, samples in row.samples.items():
        spread = f" ({number(min(samples))}-{number(max(samples))})" if len(samples) > 1 else ""
        cells.append(number(row.median(engine)) + spread + " *" * (engine == row.best()))
    return "| " + " | ".join([*cells, f"**{row.ratio():.2f}**"]) + " |"


def markdown_distances(found: list[Distance]) -> str:
    """A line of the table: the same test of all pairs."""
    first = found[0]
    cells = [f"{d.relative:.1e} (max {d.largest:.1e})" for d in found]
    return "| " + " | ".join([first.model, str(first.threads), first.test, *cells]) + " |"


def table(head: list[str], lines: list[str]) -> str:
    return "\n".join(["| " + " | ".join(head) + " |", "|---" * len(head) + "|", *lines])


def markdown(facts: dict[str, Any], rows: list[Row], distances: list[Distance]) -> str:
    """The whole report."""
    groups = [distances[i : i + len(PAIRS)] for i in range(0, len(distances), len(PAIRS))]
    pairs = [f"{ENGINES[a]} from {ENGINES[b]}" for a, b in PAIRS]
    return "\n\n".join([
        "\n".join(f"- {name}: {value}" for name, value in facts.items()),
        "Medians (least-most). Ratio: ggrun / the better of llama.cpp's two, which has the star; "
        "more than 1 is good for ggrun where the unit is t/s, less than 1 elsewhere.",
        table(
            ["model", "threads", "test", *ENGINES.values(), "ratio"],
            [markdown_row(row) for row in rows],
        ),
        "Logits: relative RMS distance, and the largest difference.",
        table(["model", "threads", "logits of", *pairs], [markdown_distances(group) for group in groups]),
    ])  # fmt: skip


def as_json(facts: dict[str, Any], rows: list[Row], distances: list[Distance]) -> str:
    """The same as one JSON object, with every sample."""
    tests = [
        {**vars(row), "median": {e: row.median(e) for e in ENGINES}, "best": row.best(), "ratio": row.ratio()}
        for row in rows
    ]
    return json.dumps({**facts, "tests": tests, "logits": [vars(d) for d in distances]}, indent=1)


def cpu_name() -> str:
    """The CPU's name, as the system has it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"


def numbers(least: int) -> Callable[[str], list[int]]:
    """The type of an option that takes whole numbers with commas between them."""

    def parse(text: str) -> list[int]:
        found = [int(part) for part in text.split(",")]
        if min(found) < least:
            raise argparse.ArgumentTypeError(f"{text!r}: less than {least}")
        return found

    parse.__name__ = "list of numbers"  # argparse names it when a part is no number
    return parse


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """What is asked for; exits with status 2 when that makes no sense."""
    parser = argparse.ArgumentParser(TOOL, description=(__doc__ or "").partition("\n")[0], allow_abbrev=False)
    parser.add_argument("models", nargs="+", metavar="MODEL.gguf")
    parser.add_argument("-t", type=numbers(1), default=[1, 2], help="threads (1,2)")
    parser.add_argument("-p", type=numbers(1), default=[512], help="tokens of the prompt (512)")
    parser.add_argument("-n", type=numbers(1), default=[64], help="tokens generated (64)")
    parser.add_argument("-d", type=numbers(0), default=[0], help="tokens in the context before -n (0)")
    parser.add_argument("-r", type=int, default=5, help="repetitions (5)")
    parser.add_argument("-ctk", choices=CACHE_KINDS, default="f16", help="keys in the cache (f16)")
    parser.add_argument("-ctv", choices=CACHE_KINDS, default="f16", help="values in the cache (f16)")
    parser.add_argument("-fa", choices=("auto", "on", "off"), default="auto", help="llama.cpp's (auto)")
    parser.add_argument("-o", choices=("md", "json"), default="md", help="output (md)")
    parser.add_argument("--pause", type=float, default=0.3, help="seconds between two tests (0.3)")
    o = parser.parse_args(argv)
    if o.r < 1 or o.pause < 0:
        parser.error("-r is at least 1, --pause at least 0")
    for model in o.models:
        if not Path(model).is_file():
            parser.error(f"{model}: no such file")
    return o


def main(argv: list[str] | None = None) -> None:
    """Compare, and print; exits with status 1 and one line when that cannot be done."""
    if "--rpc" in (words := sys.argv[1:] if argv is None else argv):
        import compare_rpc

        return compare_rpc.main([word for word in words if word != "--rpc"])
    o = arguments(argv)
    if find_spec("llama_cpp") is None:
        sys.exit(f"{TOOL}: llama.cpp is missing: pip install llama-cpp-python")
    try:
        compare(o)
    except CompareError as error:
        sys.exit(f"{TOOL}: {error}")


def compare(o: argparse.Namespace, launch: Launch = Process) -> None:
    """Run what is asked for, and print the report; what is done goes to stderr."""
    facts: dict[str, Any] = {"date": time.strftime("%Y-%m-%d %H:%M %Z"), "cpu": cpu_name()}
    facts["load average before"] = round(os.getloadavg()[0], 2)
    results: list[Row | Distance] = []
    for model in o.models:
        for threads in o.t:
            print(f"{TOOL}: {model}, threads: {threads}", file=sys.stderr)
            comparison = Comparison(model, threads, o, launch)
            results.extend(comparison.run())
            facts |= {"ggrun": comparison.about[OURS], "llama.cpp": comparison.about[THEIRS[0]]}
    facts["load average after"] = round(os.getloadavg()[0], 2)
    facts |= {"cache": f"{o.ctk} {o.ctv}", "llama.cpp's flash attention": o.fa, "repetitions": o.r}
    rows = [result for result in results if isinstance(result, Row)]
    distances = [result for result in results if isinstance(result, Distance)]
    print((as_json if o.o == "json" else markdown)(facts, rows, distances))


if __name__ == "__main__":
    main()
