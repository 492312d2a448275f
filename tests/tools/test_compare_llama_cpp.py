"""The comparison with llama.cpp: arithmetic, order of play, the worker, and what users see go wrong."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pytest

from ggrun import LLM
from ggrun.bundled import demo_model
from tools import compare_llama_cpp as tool

TOOL = Path(tool.__file__)
MODEL = str(demo_model())
SETTINGS = {"model": MODEL, "threads": 1, "n_ctx": 128}
HAS_LLAMA_CPP = importlib.util.find_spec("llama_cpp") is not None


def row(ours: list[float], repack: list[float], plain: list[float], more_is_better: bool = True) -> tool.Row:
    samples = {"ggrun": ours, "repack": repack, "plain": plain}
    return tool.Row("m", 1, "pp8", "t/s", more_is_better, samples)


class TestArithmetic:
    def test_the_ratio_is_of_medians_to_the_faster_setting(self) -> None:
        r = row([30.0, 99.0, 1.0], [10.0, 11.0, 12.0], [20.0, 1.0, 21.0])
        assert (r.best(), r.ratio()) == ("plain", 1.5)

    def test_the_smaller_is_better_where_less_is(self) -> None:
        r = row([30.0], [10.0], [20.0], more_is_better=False)
        assert (r.best(), r.ratio()) == ("repack", 3.0)

    def test_distance(self) -> None:
        b = np.float32([[3, 4], [0, 5]])
        relative, largest = tool.distance(b + np.float32([[0, 0], [0, -1]]), b)
        assert relative == pytest.approx((1 / 50) ** 0.5)
        assert largest == 1

    def test_the_table_has_median_spread_star_and_ratio(self) -> None:
        line = tool.markdown_row(row([30.0, 20.0, 1234.0], [10.0], [15.0]))
        assert line == "| m | 1 | pp8 t/s | 30 (20-1234) | 10 | 15 * | **2.00** |"


class Fake:
    """A worker whose speed is known and who writes down when it is asked."""

    FACTOR = {"ggrun": 2.0, "repack": 1.0, "plain": 0.5}  # noqa: RUF012
    start = 1.5

    def __init__(self, log: list[tuple[str, str]], engine: str, settings: dict[str, Any]) -> None:
        self._log, self._engine, self.settings = log, engine, settings
        self.hello = {"about": f"{engine} 1.0", "vocab": 2, "memory": {"rss": 10.0}}

    def ask(self, do: str, **arguments: Any) -> Any:
        self._log.append((self._engine, do))
        if do == "memory":
            return {"rss": 1.0, "peak": 100.0 * self.FACTOR[self._engine], "anonymous": 3.0}
        if do == "logits":
            np.save(arguments["path"], np.full((arguments["n"], 2), self.FACTOR[self._engine], np.float32))
            return arguments["path"]
        return arguments["n"] / (100 * self.FACTOR[self._engine])

    def __enter__(self) -> Self:
        self._log.append((self._engine, "begin"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._log.append((self._engine, "end"))


def report(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[str, list[tuple[str, str]]]:
    log: list[tuple[str, str]] = []
    o = tool.arguments([MODEL, "--pause", "0", "-t", "1", *options])
    tool.compare(o, lambda engine, settings: Fake(log, engine, settings))
    return capsys.readouterr().out, log


class TestComparison:
    def test_engines_take_turns(self, capsys: pytest.CaptureFixture[str]) -> None:
        _, log = report(capsys, "-r", "2", "-p", "8", "-n", "4")
        asked = [engine for engine, do in log if do == "tg"]
        assert asked == ["ggrun", "repack", "plain"] * 3  # one warm-up, two repetitions

    def test_one_model_at_a_time_while_starts_are_measured(self, capsys: pytest.CaptureFixture[str]) -> None:
        _, log = report(capsys, "-r", "1")
        starts = [(engine, do) for engine, do in log if do in ("begin", "end")][:12]
        assert starts == [(e, do) for _ in range(2) for e in tool.ENGINES for do in ("begin", "end")]

    def test_json(self, capsys: pytest.CaptureFixture[str]) -> None:
        out, _ = report(capsys, "-r", "2", "-p", "8", "-n", "4", "-d", "64,0", "-o", "json")
        found = json.loads(out)
        tests = {test["test"]: test for test in found["tests"]}
        assert list(tests) == ["start", "rss start", "pp8", "tg4", "tg4 @ d64", "rss peak", "anonymous"]
        assert tests["pp8"]["samples"]["ggrun"] == pytest.approx([200, 200])
        assert (tests["pp8"]["best"], tests["pp8"]["ratio"]) == ("repack", pytest.approx(2))
        assert (tests["rss peak"]["best"], tests["rss peak"]["ratio"]) == ("plain", pytest.approx(4))
        first = found["logits"][0]
        assert (first["pair"], first["relative"], first["largest"]) == (["ggrun", "repack"], 1, 1)

    def test_markdown(self, capsys: pytest.CaptureFixture[str]) -> None:
        out, _ = report(capsys, "-r", "1", "-p", "8", "-n", "4")
        assert "| pp8 t/s | 200 | 100 * | 50 | **2.00** |" in out
        assert "- ggrun: ggrun 1.0" in out

    def test_the_context_holds_the_deepest_test(self) -> None:
        o = tool.arguments([MODEL, "-d", "0,8192", "-n", "16,64", "-p", "512"])
        assert tool.context(o) == 8448


@pytest.fixture(scope="module")
def worker() -> Iterator[tool.Process]:
    with tool.Process("ggrun", SETTINGS) as worker:
        yield worker


class TestWorker:
    def test_it_says_what_it_is(self, worker: tool.Process) -> None:
        assert worker.hello["vocab"] == 4096
        assert "instructions" in worker.hello["about"]
        assert worker.start > 0

    def test_speeds_are_seconds(self, worker: tool.Process) -> None:
        assert 0 < worker.ask("pp", n=32) < 60
        assert 0 < worker.ask("tg", n=4, depth=40) < 60

    def test_logits_are_those_of_the_model(self, worker: tool.Process, tmp_path: Path) -> None:
        whole = np.load(worker.ask("logits", n=12, single=0, path=str(tmp_path / "a.npy")))
        parts = np.load(worker.ask("logits", n=12, single=4, path=str(tmp_path / "b.npy")))
        tokens = np.random.default_rng(7).integers(4096, size=SETTINGS["n_ctx"])[:12]
        with LLM(MODEL, n_ctx=128, threads=1) as llm:
            expected = llm.logits(tokens.tolist())
        assert np.array_equal(whole, expected)
        assert tool.distance(parts, expected)[0] < 0.02

    def test_memory(self, worker: tool.Process) -> None:
        memory = worker.ask("memory")
        assert 10 < memory["anonymous"] < memory["rss"] <= memory["peak"]

    def test_an_error_is_one_line(self) -> None:
        with (
            pytest.raises(tool.CompareError, match=r"^ggrun: GGUFError: .*compare_llama_cpp.py") as caught,
            tool.Process("ggrun", {**SETTINGS, "model": str(TOOL)}),
        ):
            pass
        assert "\n" not in str(caught.value)

    def test_a_worker_that_dies_is_told(self) -> None:
        with pytest.raises(tool.CompareError, match=r"ended with status 1: TypeError.*nonsense"):
            tool.Process("ggrun", {**SETTINGS, "nonsense": 1})


class TestUsers:
    def test_missing_package(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setitem(sys.modules, "llama_cpp", None)
        with pytest.raises(SystemExit) as caught:
            tool.main([MODEL])
        assert caught.value.code == "compare_llama_cpp: llama.cpp is missing: pip install llama-cpp-python"

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (["no.gguf"], "no.gguf: no such file"),
            ([MODEL, "-t", "0"], "less than 1"),
            ([MODEL, "-p", "some"], "invalid list of numbers value: 'some'"),
            ([MODEL, "-r", "0"], "-r is at least 1"),
            ([MODEL, "-ctk", "q9"], "invalid choice: 'q9'"),
            ([], "MODEL.gguf"),
        ],
    )
    def test_arguments_that_make_no_sense(self, options: list[str], said: str) -> None:
        done = subprocess.run(
            [sys.executable, str(TOOL), *options], capture_output=True, text=True, check=False
        )
        assert done.returncode == 2
        assert said in done.stderr.splitlines()[-1]

    @pytest.mark.skipif(not HAS_LLAMA_CPP, reason="needs llama-cpp-python")
    def test_with_llama_cpp(self) -> None:
        options = [MODEL, "-t", "1", "-p", "64", "-n", "4", "-r", "1", "-o", "json"]
        done = subprocess.run(
            [sys.executable, str(TOOL), *options], capture_output=True, text=True, check=True
        )
        found = json.loads(done.stdout)
        assert all(test["ratio"] > 0 for test in found["tests"])
        # The model's weights have 8 bits, and so have the activations in both.
        assert all(d["relative"] < 0.02 for d in found["logits"])
