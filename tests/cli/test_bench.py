"""ggrun bench: its lists and ranges, the bytes it counts, and the command as users meet it."""

import csv
import io
import json
import signal
import statistics
import subprocess
from contextlib import closing
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggrun import LLM
from ggrun.bundled import demo_model
from ggrun.cli.bench import bench
from ggrun.cli.bench_model import model_type
from ggrun.cli.bench_output import Markdown
from ggrun.cli.bench_tests import Case, ModelFacts, Result, Setup, all_tests
from ggrun.cli.bench_used import Used
from ggrun.cli.bench_values import Files, Names, Numbers, Pairs
from ggrun.devices.best import TopK
from ggrun.engine import engine
from ggrun.engine.outputs import Outputs
from ggrun.gguf import GGUF
from tests.cli.test_run import GGRUN, bash, complaint, ggrun, here, listen_to_ctrl_c
from tests.tiny import Tiny
from tests.waiting import PATIENCE

QUICK = ("-p", "16", "-n", "4", "-r", "2", "-t", "1")


def values(kind: click.ParamType, text: str) -> Any:
    return kind.convert(text, None, None)


# ---------------------------------------------------------------- lists and ranges


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("512", [512]),
        ("0", [0]),
        ("1,2,1", [1, 2, 1]),
        ("16/32", [16, 32]),
        ("3-6", [3, 4, 5, 6]),
        ("128-512+128", [128, 256, 384, 512]),
        ("128-600+128", [128, 256, 384, 512]),
        ("128-1024*2", [128, 256, 512, 1024]),
        ("1,8-10,64-256*4", [1, 8, 9, 10, 64, 256]),
        ("7-7", [7]),
    ],
)
def test_numbers(text: str, expected: list[int]) -> None:
    assert values(Numbers(0), text) == expected


@given(st.lists(st.integers(0, 1 << 30), min_size=1, max_size=9), st.sampled_from(",/"))
def test_lists_of_numbers(numbers: list[int], separator: str) -> None:
    assert values(Numbers(0), separator.join(map(str, numbers))) == numbers


@given(st.integers(0, 500), st.integers(0, 500), st.integers(1, 50))
def test_ranges_with_steps(first: int, more: int, step: int) -> None:
    expected = list(range(first, first + more + 1, step))
    assert values(Numbers(0), f"{first}-{first + more}+{step}") == expected


@given(st.integers(1, 50), st.integers(0, 5000), st.integers(2, 9))
def test_ranges_with_factors(first: int, more: int, factor: int) -> None:
    numbers = values(Numbers(0), f"{first}-{first + more}*{factor}")
    assert numbers[0] == first
    assert all(b == a * factor for a, b in pairwise(numbers))
    assert numbers[-1] <= first + more < numbers[-1] * factor


@given(st.text(st.sampled_from("0123456789,/+*- x"), max_size=12))
def test_no_text_is_an_accident(text: str) -> None:
    try:
        numbers = values(Numbers(1), text)
    except click.BadParameter:
        return
    assert numbers
    assert all(1 <= n < 1 << 31 for n in numbers)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        *[(Numbers(0), text) for text in ("", "x", "1,", "1,,2", "-1", "5-3", "1-9*1", "0-9*2", "1-9+0")],
        *[(Numbers(0), text) for text in ("1-2000000000", "1-9:2", "99999999999", "1.5", "٣")],
        (Numbers(1), "0"),
        *[(Pairs(), text) for text in ("", "1", "1,2,3", "1/2/3", "1/2,3", "a,b", "1,99999999999")],
        *[(Names(("f16", "q8_0")), text) for text in ("", "f16,", "q4_0")],
        *[(Files(), text) for text in ("", "a,,b", "a,")],
    ],
)
def test_what_is_no_list(kind: click.ParamType, text: str) -> None:
    with pytest.raises(click.BadParameter):
        values(kind, text)


def test_pairs_names_and_files(tmp_path: Path) -> None:
    assert values(Pairs(), "512,128") == values(Pairs(), "512/128") == [(512, 128)]
    assert values(Pairs(), "512/128,16/4") == [(512, 128), (16, 4)]
    assert values(Names(("f16", "q8_0")), "q8_0,f16/f16") == ["q8_0", "f16", "f16"]
    assert values(Files(), "a/b.gguf,c.gguf") == [Path("a/b.gguf"), Path("c.gguf")]
    odd = tmp_path / "one,two.gguf"
    odd.touch()
    assert values(Files(), str(odd)) == [odd]


# ---------------------------------------------------------------- what is run, and what is said of it


def test_names_of_tests() -> None:
    cases = [Case(512, 0, 0), Case(0, 128, 0), Case(0, 128, 512), Case(512, 128, 0), Case(16, 4, 8)]
    names = ["pp512", "tg128", "tg128 @ d512", "pp512+tg128", "pp16+tg4 @ d8"]
    assert [case.name for case in cases] == names


def test_all_combinations_in_llama_benchs_order() -> None:
    options = {
        "model": [Path("a"), Path("b")], "n_batch": [8], "n_ubatch": [4], "type_k": ["f16"],
        "type_v": ["f16"], "n_threads": [1, 2], "n_prompt": [3, 0], "n_gen": [5], "n_pg": [(0, 0), (6, 7)],
        "n_depth": [0, 9],
    }  # fmt: skip
    tests = list(all_tests(options))
    assert [case.name for _, case in tests[:6]] == [
        "pp3", "tg5", "pp6+tg7", "pp3 @ d9", "tg5 @ d9", "pp6+tg7 @ d9",
    ]  # fmt: skip
    assert [(str(s.model), s.n_threads) for s, _ in tests[::6]] == [("a", 1), ("a", 2), ("b", 1), ("b", 2)]


CPU = Used("CPU", "cpu", 1e6)


def result(case: Case, samples: list[int], threads: float | None = 1.0, used: Used = CPU) -> Result:
    facts = ModelFacts("tiny", 10, 10, weight_bytes=1000, cell_bytes=10)
    return Result(Setup(Path("m"), 8, 4, "f16", "f16", 2), facts, used, case, "", samples, threads)


def test_what_is_computed_from_times() -> None:
    fields = result(Case(0, 4, 100), [10**9, 2 * 10**9]).fields()
    assert fields["avg_ts"] == 3.0
    assert fields["stddev_ts"] == pytest.approx(2**0.5)
    assert fields["avg_ns"] == 1_500_000_000
    # The four tokens see 101, 102, 103 and 104 positions.
    assert fields["token_bytes"] == 1000 + 10 * 102.5
    assert fields["read_bytes_per_second"] == 3 * 2025
    assert fields["memory_share"] == pytest.approx(3 * 2025 / 1e6)
    of_prompt = result(Case(4, 4, 0), [10**9]).fields()
    assert of_prompt["avg_ts"] == 8
    assert of_prompt["stddev_ts"] == 0
    assert of_prompt["token_bytes"] is of_prompt["memory_share"] is None


@pytest.mark.parametrize(
    ("threads", "shown"), [(2.0, "2"), (1.98, "2"), (1.4, "1.4/2"), (1.0, "1.0/2"), (None, "")]
)
def test_threads_that_sat_out_are_shown(threads: float | None, shown: str) -> None:
    stream = io.StringIO()
    Markdown(stream, []).add(result(Case(0, 4, 0), [10**9], threads))
    assert [cell.strip() for cell in stream.getvalue().splitlines()[-1].split("|")][5] == shown
    assert result(Case(0, 4, 0), [10**9], threads).fields()["mean_threads"] == threads


@pytest.mark.parametrize(
    ("used", "cells", "line"),
    [
        (CPU, ["CPU", "0.00", "0"], "memory bandwidth: 0.00 GB/s (threads: 2)\n"),
        (Used("CUDA", "cuda:0", 8e3), ["CUDA", "0.00", "51"], "memory bandwidth: 0.00 GB/s (cuda:0)\n"),
        (Used("CUDA", "cuda:0"), ["CUDA", "0.00", ""], ""),
        (Used("CUDA,CPU"), ["CUDA,CPU", "0.00", ""], ""),
    ],
)
def test_what_is_used_is_shown(used: Used, cells: list[str], line: str) -> None:
    stream = io.StringIO()
    table = Markdown(stream, [])
    table.add(result(Case(0, 4, 0), [10**9], used=used))
    row = [cell.strip() for cell in stream.getvalue().splitlines()[-1].split("|")]
    assert [row[4], *row[8:10]] == cells
    table.end()
    assert stream.getvalue().partition("build: ")[2].partition("\n")[2] == line


def test_names_of_models(tmp_path: Path) -> None:
    assert model_type(GGUF(demo_model())) == "llama 7.0M Q8_0"
    assert model_type(GGUF(Tiny().write(tmp_path / "a.gguf"))).endswith(" F32 (guessed)")


# ---------------------------------------------------------------- the command


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return Tiny().write(tmp_path / "tiny.gguf")


def test_the_table() -> None:
    done = ggrun("bench", *QUICK, "-d", "0,8", "-pg", "8,2", "-ctk", "f16,q8_0")
    assert done.returncode == 0, done.stderr
    table = done.stdout.split("\n\n")[0].splitlines()
    assert len({len(line) for line in table}) == 1
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert ",".join(rows[0]) == "model,size,params,backend,threads,type_k,test,t/s,GB/s,% bw"
    names = ["pp16", "tg4", "pp8+tg2"]
    assert [row[6] for row in rows[2:]] == [*names, *(f"{name} @ d8" for name in names)] * 2
    assert [row[5] for row in rows[2:]] == ["f16"] * 6 + ["q8_0"] * 6
    for row in rows[2:]:
        assert row[:5] == ["llama 7.0M Q8_0", "7.06 MiB", "6.95 M", "CPU", "1"]
        speed, deviation = map(float, row[7].split(" ± "))
        assert speed > 0 <= deviation
        assert (row[8] != "") == (row[9] != "") == row[6].startswith("tg")
    assert "GB/s (threads: 1)" in done.stdout


def test_json_says_what_happened(tiny: Path) -> None:
    done = ggrun("bench", "-m", f"{tiny},{demo_model()}", *QUICK, "-o", "json", "-oe", "jsonl")
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    of_stderr = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    assert results == of_stderr
    assert [(r["n_prompt"], r["n_gen"]) for r in results] == [(16, 0), (0, 4)] * 2
    assert [r["model_filename"] for r in results[::2]] == [str(tiny), str(demo_model())]
    assert results[2]["model_size"] == 7398400
    for r in results:
        n = r["n_prompt"] + r["n_gen"]
        assert len(r["samples_ns"]) == 2
        assert r["mean_threads"] == r["n_threads"] == 1
        assert r["samples_ts"] == pytest.approx([n * 1e9 / ns for ns in r["samples_ns"]])
        assert r["avg_ts"] == pytest.approx(statistics.mean(r["samples_ts"]))
        assert r["stddev_ts"] == pytest.approx(statistics.stdev(r["samples_ts"]))
        assert r["avg_ns"] == pytest.approx(statistics.mean(r["samples_ns"]), abs=1)
        assert r["memory_bandwidth"] > 1e8
        if r["n_gen"]:
            assert r["read_bytes_per_second"] == pytest.approx(r["token_bytes"] * r["avg_ts"])
            assert r["memory_share"] == pytest.approx(r["read_bytes_per_second"] / r["memory_bandwidth"])


def test_what_is_timed_is_what_a_text_takes(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tops, init = set[TopK | None](), Outputs.__init__
    monkeypatch.setattr(
        Outputs, "__init__", lambda self, b, *args: (tops.add(b.top), init(self, b, *args))[1]
    )
    monkeypatch.setattr(engine, "_FEW_LOGITS", 0)
    bench.main([*QUICK, "-m", str(tiny)], standalone_mode=False)
    timed = tops.copy()
    tops.clear()
    with closing(LLM(tiny, threads=1)) as llm:
        assert len(list(islice(llm.generate_tokens([1, 2, 3]), 3))) == 3
    assert timed == tops != {None}


def test_csv_and_the_environment(tiny: Path) -> None:
    done = ggrun(
        "bench", "-o", "csv", "-r", "1", "--no-warmup", "-n", "3",
        GGRUN_MODEL=str(tiny), GGRUN_N_PROMPT="8-16*2", GGRUN_N_GEN="99", GGRUN_THREADS="1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(done.stdout.splitlines()))
    assert [(row["n_prompt"], row["n_gen"]) for row in rows] == [("8", "0"), ("16", "0"), ("0", "3")]
    assert rows[0]["token_bytes"] == "" != rows[2]["token_bytes"]
    assert {row["stddev_ts"] for row in rows} == {"0.0"}


def test_progress_on_stderr(tiny: Path) -> None:
    done = ggrun("bench", "-m", tiny, "-p", "0", "-n", "2", "-r", "2", "-t", "1", "--progress")
    lines = [line for line in done.stderr.splitlines() if "test 1/1" in line]
    assert [line.rpartition(": ")[2] for line in lines] == ["warm-up", "run 1/2", "run 2/2"]


@pytest.mark.parametrize(
    ("args", "status", "words"),
    [
        (["-m", "nowhere.gguf"], 1, ["nowhere.gguf", "No such file"]),
        (["-p", "0", "-n", "0"], 2, ["no tests"]),
        (["-p", "12x"], 2, ["-p", "12x"]),
        (["-n", "9-5"], 2, ["-n", "9-5"]),
        (["-pg", "512"], 2, ["-pg", "512"]),
        (["-d", "2000000000"], 1, ["pp512 @ d2000000000", "GiB", "-d"]),
        (["-ctk", "q3"], 2, ["-ctk", "q3"]),
        (["-o", "sql"], 2, ["sql", "jsonl"]),
        (["-r", "0"], 2, ["-r"]),
        (["-t", "100000", "-p", "1"], 2, ["100000 threads"]),
        (["-np", "2"], 2, ["-np", "not built yet", "ggrun bench -h"]),
        (["-ngl", "most"], 2, ["-ngl 'most'"]),
        (["-ts", "1,2"], 2, ["-ts gives 2 numbers for 0 cards"]),
        (["-fitt", "100000000"], 1, ["does not fit"]),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else str(v),
)
def test_bad_usage_gets_one_line(
    args: list[str], status: int, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    args += ["-n", "0"] if "-n" not in args else []
    line = complaint(here(capsys, "bench", *args), status)
    for word in words:
        assert word in line


def test_what_fails_does_not_keep_the_others_from_running(tiny: Path) -> None:
    done = ggrun("bench", "-m", f"nowhere.gguf,{tiny}", *QUICK, "-d", "0,2000000000", "-o", "json")
    assert done.returncode == 1
    assert [(r["n_prompt"], r["n_gen"]) for r in json.loads(done.stdout)] == [(16, 0), (0, 4)]
    complaints = [line for line in done.stderr.splitlines() if line.startswith("ggrun: ")]
    assert ["nowhere.gguf" in line for line in complaints] == [True, False, False]
    assert json.loads(ggrun("bench", "-m", "nowhere.gguf", "-o", "json").stdout) == []


@pytest.mark.parametrize("begun", ["test 1/2 (pp8): run", "test 2/2 (tg4000): run 1"])
def test_ctrl_c_leaves_whole_output(tiny: Path, begun: str) -> None:
    command = [*GGRUN, "bench", "-m", str(tiny), "-p", "8", "-n", "4000", "-r", "1000000", "-o", "json"]
    if "2/2" in begun:
        command[command.index("1000000")] = "50"
    process = subprocess.Popen(
        [*command, "-t", "1", "--no-warmup", "--progress"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=listen_to_ctrl_c,
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if begun in line:
            break
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert len(json.loads(output)) == ("2/2" in begun)


def test_a_reader_that_leaves_is_no_error(tiny: Path) -> None:
    command = " ".join(f"'{part}'" for part in [*GGRUN, "bench", "-m", str(tiny), *QUICK, "-n", "1-9"])
    done = bash(f"{command} | head -n 1; echo status ${{PIPESTATUS[0]}}")
    assert done.stdout.endswith("status 0\n")
    assert "rror" not in done.stderr
