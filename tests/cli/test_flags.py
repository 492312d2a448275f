"""How flags are read: their twins in the environment, llama.cpp's flags that are not built, escapes."""

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from ggrun.cli.commands import COMMANDS
from ggrun.cli.commands import ggrun as group
from ggrun.cli.llama_cpp import NEEDLESS, NOT_BUILT
from ggrun.cli.options import sampling, unescaped
from ggrun.cli.run import _unescape, run
from ggrun.errors import UsageError
from tests.cli.test_run import complaint, ggrun, here

FLAGS = [option for option in run.params if isinstance(option, click.Option) and option.expose_value]
QUIET = ("run", "--no-display-prompt", "--no-show-timings", "--temp", "0")


def parsed(*args: str) -> dict[str, Any]:
    return dict(run.make_context("run", list(args)).params)


def chosen(*args: str) -> Any:
    """The sampling options of a command line."""
    with run.make_context("run", list(args)) as context:
        _unescape(context.params)
        return sampling(context.params)


def sample(option: click.Option, before: Any) -> str:
    """A value that is not the default."""
    if option.is_flag:
        return "0" if before else "1"
    if isinstance(option.type, click.Choice):
        return str(option.type.choices[-1])
    return "0.25" if isinstance(option.type, click.types.FloatParamType) else "3"


@pytest.mark.parametrize("option", FLAGS, ids=lambda option: option.opts[-1])
def test_every_flag_has_its_twin(option: click.Option, monkeypatch: pytest.MonkeyPatch) -> None:
    long = next(name for name in option.opts if name.startswith("--"))
    before = parsed()[option.name or ""]
    monkeypatch.setenv("GGRUN_" + long.removeprefix("--").upper().replace("-", "_"), sample(option, before))
    assert parsed()[option.name or ""] != before


@pytest.mark.parametrize("name", ["GGRUN_CTX_SIZE", "GGRUN_SPLIT_MODE", "GGRUN_FILE"])
def test_errors_of_twins_name_the_variable(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(name, "https://x")
    long = "--" + name.removeprefix("GGRUN_").lower().replace("_", "-")
    line = complaint(here(capsys, "run", "-p", "x"), 2)
    assert line.startswith(f"ggrun: Invalid value for {name} ('-")
    assert f"'{long}'): " in line
    monkeypatch.delenv(name)
    assert name not in complaint(here(capsys, "run", "-p", "x", long, "https://x"), 2)


def test_twins_are_not_taken_for_other_settings() -> None:
    assert len({option.envvar for option in FLAGS}) == len(FLAGS)
    assert not {f"GGRUN_{name}" for name in ("CACHE", "SIMD", "DEBUG", "PEER")} & {o.envvar for o in FLAGS}


def test_texts_in_the_environment_are_not_cut_at_spaces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GGRUN_REVERSE_PROMPT", "the end\nThe End")
    monkeypatch.setenv("GGRUN_DRY_SEQUENCE_BREAKER", " and ")
    assert parsed()["stop"] == ("the end", "The End")
    assert parsed()["dry_sequence_breaker"] == (" and ",)


def test_the_command_line_outdoes_the_environment(tmp_path: Path) -> None:
    want = ggrun(*QUIET, "-n", "4", "-p", "The fox")
    done = ggrun(*QUIET, "-n", "4", "-p", "The fox", GGRUN_FILE="nowhere", GGRUN_GRAMMAR_FILE="")
    assert (done.returncode, done.stdout) == (0, want.stdout)
    given = ggrun(*QUIET, "-p", "x", "--grammar", 'root ::= "a"', GGRUN_GRAMMAR_FILE="nowhere")
    assert (given.returncode, given.stdout) == (0, "a\n")


@pytest.mark.parametrize(
    "args",
    [
        "-fa",
        "-fa on",
        "-fa=off",
        "-lm none",
        "--mmap=1",
        "--numa distribute",
        "-hf a/b",
        "-sys x",
        "-np 2",
        "-lv 3",
        "-kvu",
        "-rea off",
        "-dt 0.1",
        "--cache-prompt",
    ],
)
def test_flags_that_are_not_built_are_named(args: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = complaint(here(capsys, "run", "-p", "x", *args.split()), 2)
    assert f" {re.split('[ =]', args)[0]}: not built yet" in line


def test_flags_for_what_ggrun_does_anyway_are_taken(capsys: pytest.CaptureFixture[str]) -> None:
    every = [
        word
        for name, values in NEEDLESS.items()
        for value in values or [""]
        for word in (name, value)
        if word
    ]
    assert "auto" in every
    flags = ["-c", "64", "--temp", "0", "-r", "--mmap"]
    for args in ([*every, *flags], [*flags, *every], [*every[:4], *flags, *every[4:], "--flash-attn=auto"]):
        assert parsed(*args) == parsed(*flags)
    assert "--mmap: not built yet" in complaint(here(capsys, "bench", "--mmap", "1"), 2)
    assert "unexpected extra argument" in complaint(here(capsys, "run", "--", "--mmap"), 2)


def test_what_is_built_is_not_said_to_be_missing() -> None:
    assert not NOT_BUILT & {name for option in FLAGS for name in (*option.opts, *option.secondary_opts)}


@pytest.mark.parametrize("flag", ["-foo", "-tmep", "-pHello", "-npredict"])
def test_an_unknown_flag_is_refused_by_its_whole_name(flag: str) -> None:
    with pytest.raises(click.NoSuchOption) as refused:
        parsed("-p", "x", flag, "3")
    assert refused.value.option_name == flag
    assert flag in refused.value.format_message()


def test_numbers_belong_to_the_letter_before() -> None:
    got = parsed("-n5", "-c4096", "-s-1", "-t2", "-l5+1.5", "-p", "-ngl", "--temp=.5", "-r", "-x")
    assert (got["max_tokens"], got["n_ctx"], got["seed"], got["threads"]) == (5, 4096, -1, 2)
    assert (got["prompt"], got["temp"], got["stop"], got["logit_bias"]) == ("-ngl", 0.5, ("-x",), ("5+1.5",))


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (r"a\nb\tc\rd", "a\nb\tc\rd"),
        (r"\"\'", "\"'"),
        (r"C:\\new\\table", r"C:\new\table"),
        (r"\\\n", "\\\n"),
        (r"\x41\xc3\xA9", "Aé"),
        (r"\x4 \q \ü", r"\x4 \q \ü"),
        ("ends with \\", "ends with \\"),
    ],
)
def test_escapes(written: str, meant: str) -> None:
    assert unescaped(written) == meant


def test_escapes_that_make_no_text_get_one_line() -> None:
    with pytest.raises(UsageError, match="UTF-8"):
        unescaped(r"\xff")


def test_where_escapes_are_understood(tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text("a\\tb\n\n")
    both = {"prompt_file": file, "prompt": None, "stop": (r"\n",), "dry_sequence_breaker": (r"\x41",)}
    with run.make_context("run", []):
        _unescape(options := {**both, "escape": True})
        assert options == {"prompt": "a\tb\n", "stop": ("\n",), "dry_sequence_breaker": ("A",)}
        _unescape(options := {**both, "escape": False})
        assert options == {"prompt": "a\\tb\n", "stop": (r"\n",), "dry_sequence_breaker": (r"\x41",)}


def test_llama_cpp_ways_to_say_it() -> None:
    got = chosen("--typical-p", "0.5", "-s", "4294967295", "-l", "5+1.5e-3", "-l", "7-inf", "-l", "8-1")
    assert (got.typical, got.seed) == (0.5, -1)
    assert got.logit_bias == {5: 1.5e-3, 7: -float("inf"), 8: -1.0}
    done = ggrun(*QUIET, "-p", "x", "-n", "-2", "--grammar", 'root ::= "abc"')
    assert (done.returncode, done.stdout) == (0, "abc\n")


@pytest.mark.parametrize("bias", ["5", "+5", "5+", "5+x", "x+5", "5*2", "-5+1"])
def test_biases_that_make_no_sense(bias: str) -> None:
    with pytest.raises(UsageError, match="logit-bias"):
        chosen("-l", bias)


def test_without_arguments_there_is_help() -> None:
    done = ggrun()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == ggrun("--help").stdout
    assert len(done.stdout.splitlines()) > 10


def test_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ggrun", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("ggrun, version ")


def test_help_needs_no_engine() -> None:
    script = "import sys, ggrun.cli.run; print([m for m in ('numpy', 'numba', 'gguf') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ast.literal_eval(done.stdout) == []


def test_no_flag_has_a_setting_of_ggrun_for_its_twin() -> None:
    """A cache folder is no answer to whether weights are kept."""
    ours = {f"GGRUN_{name}" for name in ("CACHE", "CONFIG", "DEBUG", "SIMD", "PEER", "EMULATED_SEED")}
    twins: set[Any] = set()
    for name in COMMANDS:
        command = group.get_command(click.Context(group), name)
        assert command is not None
        twins |= {parameter.envvar for parameter in command.params if isinstance(parameter, click.Option)}
    assert len(twins) > 50
    assert not twins & ours
