"""Compare workers with llama.cpp's RPC server: tools/compare_llama_cpp.py --rpc MODEL.gguf --library SO ...

Both have the same model, half of whose layers are on a worker of this machine: another process, with the same
threads, spoken to over loopback (ours by TLS, with a token; theirs has neither). Each client is a process of
its own (compare_worker.py), and they take turns.

SO is libggml-rpc.so: of a llama-cpp-python that was built with CMAKE_ARGS=-DGGML_RPC=on -DGGML_BACKEND_DL=on,
or compiled from the two files of its ggml/src/ggml-rpc with -DGGML_BACKEND_DL.

load     seconds that a process, once it is there, takes to load the model; first: the worker has nothing yet;
         second: with the worker's cache (theirs: rpc-server -c). Files are warm
start    from a new process to the first token
ppN, tgN as compare_llama_cpp.py has them
"""

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from compare_llama_cpp import CompareError, Process, cpu_name, number, numbers, table

from ggrun.gguf import Outline
from ggrun.rpc import keys

TOOL = "compare_llama_cpp --rpc"
OURS, THEIRS = "ggrun", "plain"
NAMES = {OURS: "ggrun", THEIRS: "llama.cpp"}
_WAIT = 60.0


@dataclass(frozen=True)
class Result:
    """A test of both: seconds, or tokens a second."""

    test: str
    unit: str
    samples: dict[str, list[float]]

    def ratio(self) -> float:
        """How many times faster ours is."""
        ours, theirs = (median(self.samples[engine]) for engine in (OURS, THEIRS))
        return theirs / ours if self.unit == "s" else ours / theirs


def serve_llama(library: str, address: str, threads: str, cache: str) -> None:
    """llama.cpp's RPC server with this machine's CPU; ends with the process."""
    from compare_worker import llama_rpc

    llama_rpc(library).serve(address, int(threads), cache)


@contextmanager
def our_worker(folder: Path, threads: int) -> Iterator[str]:
    """The address of a worker that this process has joined."""
    os.environ["GGRUN_CONFIG"] = str(folder / "client")
    flags = [
        "-p",
        "0",
        "-t",
        str(threads),
        "-d",
        "cpu:0:64GB",
        "-fitt",
        "0",
        "--cache-dir",
        str(folder / "cache"),
    ]
    with started(
        [sys.executable, "-m", "ggrun", "worker", *flags], {"GGRUN_CONFIG": str(folder / "worker")}
    ) as process:
        assert process.stderr
        for line in process.stderr:
            if "ggrun join" in line:
                *_, address, key = line.split()
                keys.join(address, keys.Key.parse(key))
            if "listening" in line:
                yield address
                return
        raise CompareError("our worker did not start")


@contextmanager
def their_worker(folder: Path, threads: int, library: str) -> Iterator[str]:
    """The address of llama.cpp's server."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    (folder / "llama").mkdir()
    arguments = [library, address, str(threads), str(folder / "llama")]
    with started([sys.executable, __file__, "serve", *arguments], {}):
        deadline = time.monotonic() + _WAIT
        while time.monotonic() < deadline:
            try:
                socket.create_connection(address.split(":")).close()  # type: ignore[arg-type]
            except OSError:
                time.sleep(0.1)
            else:
                yield address
                return
        raise CompareError("llama.cpp's server did not start")


@contextmanager
def started(command: list[str], env: dict[str, str]) -> Iterator["subprocess.Popen[str]"]:
    """A process that ends with the block."""
    process = subprocess.Popen(
        command, env={**os.environ, **env}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def compare(o: argparse.Namespace, open_: Callable[[str], Any]) -> Iterator[Result]:
    """All tests, in turn."""
    loads: dict[str, list[float]] = {engine: [] for engine in NAMES}
    starts: dict[str, list[float]] = {engine: [] for engine in NAMES}
    for _ in range(1 + o.r):
        for engine in NAMES:
            with open_(engine) as worker:
                loads[engine].append(worker.hello["load"])
                starts[engine].append(worker.start)
    for what, found in (("load", loads), ("start", starts)):
        yield Result(f"first {what}", "s", {engine: times[:1] for engine, times in found.items()})
        yield Result(f"second {what}", "s", {engine: times[1:] for engine, times in found.items()})
    with ExitStack() as stack:
        workers = {engine: stack.enter_context(open_(engine)) for engine in NAMES}
        tests = [(f"pp{n}", n, {"do": "pp", "n": n}) for n in o.p]
        tests += [(f"tg{n}", n, {"do": "tg", "n": n, "depth": 0}) for n in o.n]
        for test, n, command in tests:
            samples: dict[str, list[float]] = {engine: [] for engine in NAMES}
            for repetition in range(o.r + 1):
                for engine, worker in workers.items():
                    time.sleep(o.pause)
                    seconds = worker.ask(**command)
                    if repetition:
                        samples[engine].append(n / seconds)
            yield Result(test, "t/s", samples)


def report(facts: dict[str, Any], results: list[Result]) -> str:
    """A table."""
    lines = []
    for result in results:
        cells = [f"{result.test} {result.unit}"]
        for engine in NAMES:
            samples = result.samples[engine]
            spread = f" ({number(min(samples))}-{number(max(samples))})" if len(samples) > 1 else ""
            cells.append(number(median(samples)) + spread)
        lines.append("| " + " | ".join([*cells, f"**{result.ratio():.2f}**"]) + " |")
    said = "\n".join(f"- {name}: {value}" for name, value in facts.items())
    return f"{said}\n\n{table(['test', *NAMES.values(), 'times faster'], lines)}"


def arguments(argv: list[str]) -> argparse.Namespace:
    """What is asked for."""
    parser = argparse.ArgumentParser(TOOL, description=(__doc__ or "").partition("\n")[0], allow_abbrev=False)
    parser.add_argument("model", metavar="MODEL.gguf")
    parser.add_argument("--library", required=True, metavar="SO", help="libggml-rpc.so")
    parser.add_argument("-t", type=int, default=1, help="threads of the client, and of the worker (1)")
    parser.add_argument("-p", type=numbers(1), default=[512], help="tokens of the prompt (512)")
    parser.add_argument("-n", type=numbers(1), default=[64], help="tokens generated (64)")
    parser.add_argument("-r", type=int, default=3, help="repetitions (3)")
    parser.add_argument("--pause", type=float, default=0.3, help="seconds between two tests (0.3)")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """Compare, and print; exits with status 1 and one line when that cannot be done."""
    o = arguments(argv)
    layers = Outline.read(o.model)
    half = layers.int_(f"{layers.architecture}.block_count") // 2
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        try:
            addresses = {
                OURS: stack.enter_context(our_worker(folder, o.t)),
                THEIRS: stack.enter_context(their_worker(folder, o.t, o.library)),
            }

            def open_(engine: str) -> Process:
                settings = {"model": o.model, "threads": o.t, "n_ctx": max(o.p + o.n) + 256, "layers": half}
                rpc = {"rpc": addresses[engine], "library": o.library}
                return Process(engine, {**settings, **rpc})

            facts = {"cpu": cpu_name(), "model": Path(o.model).name, "threads": f"{o.t} + {o.t}"}
            facts |= {"last layers (with the output) on the worker": half}
            print(report(facts, list(compare(o, open_))))
        except CompareError as error:
            sys.exit(f"{TOOL}: {error}")


if __name__ == "__main__":
    serve_llama(*sys.argv[2:])
