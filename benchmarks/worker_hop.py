"""What a worker costs a token: python benchmarks/worker_hop.py MODEL.gguf [TOKENS [RUNS]]

Half of the layers are on a worker of this machine, by TLS on loopback; beside it, in turn, the same two
stages in one process. One thread each. A token goes one hop there, and one back: the cost of a hop is half of
what a token takes longer. Prints least and median, of runs of so many tokens each (3, 40).
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

from ggrun import LLM
from ggrun.arch.config import Config
from ggrun.engine.generate import usual_top
from ggrun.gguf import GGUF
from ggrun.plan import Plan, Stage, whole
from ggrun.rpc.placed import RpcOptions

LIMIT = "cpu:0:4GB"
PROMPT = list(range(5, 13))


@contextmanager
def joined_worker(folder: str) -> Iterator[str]:
    """Its address, from where this process may use it. folder: for secrets and weights."""
    command = [sys.executable, "-m", "ggrun", "worker", "-p", "0", "-t", "1", "-d", LIMIT]
    command += ["--cache-dir", f"{folder}/cache"]
    env = {**os.environ, "GGRUN_CONFIG": f"{folder}/worker"}
    with subprocess.Popen(command, env=env, text=True, stderr=subprocess.PIPE) as process:
        try:
            assert process.stderr
            lines = iter(process.stderr.readline, "")
            address, key = next(
                found.groups() for line in lines if (found := re.search(r"join (\S+) (\S+)", line))
            )
            os.environ["GGRUN_CONFIG"] = f"{folder}/client"
            subprocess.run([sys.executable, "-m", "ggrun", "join", address, key], check=True)
            next(line for line in lines if "listening" in line)
            yield address
        finally:
            process.terminate()


def two_stages(path: str, second: str) -> Plan:
    config = Config.from_gguf(GGUF(path))
    halves = config.layers // 2 * 2
    first, last = ((0, halves), "cpu"), ((halves, 2 * config.layers), second)
    return Plan(tuple(Stage(span, (whole(config, device),)) for span, device in (first, last)))


def seconds(llm: LLM, tokens: int) -> float:
    """Of a token, of which what a text wants comes back."""
    engine, top = llm._engine, usual_top(llm.config.vocab)
    engine.cache.truncate(0, len(PROMPT))
    begin = time.perf_counter()
    for token in range(tokens):
        engine.evaluate([token + 5], top=top)
    return (time.perf_counter() - begin) / tokens


def main() -> None:
    if len(sys.argv) not in (2, 3, 4):
        sys.exit(__doc__)
    path, (tokens, runs) = sys.argv[1], (*map(int, sys.argv[2:]), *(3, 40)[len(sys.argv) - 2 :])
    with tempfile.TemporaryDirectory() as folder, joined_worker(folder) as address:
        here = LLM(path, n_ctx=256, threads=1, plan=two_stages(path, LIMIT))
        plan = two_stages(path, f"{address}/{LIMIT}")
        there = LLM(path, n_ctx=256, threads=1, plan=plan, rpc=RpcOptions(address))
        times: dict[str, list[float]] = {"here": [], "there": []}
        for llm in (here, there):
            llm._engine.decode(PROMPT)
            seconds(llm, tokens)
        for _ in range(runs):
            times["here"].append(seconds(here, tokens))
            times["there"].append(seconds(there, tokens))
        for name, of in (("least", min), ("median", median)):
            one, other = of(times["here"]), of(times["there"])
            print(
                f"{name}: {1e3 * one:.2f} ms a token here, {1e3 * other:.2f} with the worker: "
                f"{one / other:.1%} of the speed, {1e6 * (other - one) / 2:.0f} us a hop"
            )
        here.close()
        there.close()


if __name__ == "__main__":
    main()
