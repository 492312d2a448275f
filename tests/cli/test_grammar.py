"""Grammars and JSON schemas on the command line."""

import json
import re
from pathlib import Path

import pytest

from tests.cli.test_run import complaint, ggrun, here

QUIET = ("run", "-p", "Once upon a time", "--no-display-prompt", "--no-show-timings", "-s", "1")


def test_grammars_by_flag_and_file(tmp_path: Path) -> None:
    grammar = 'root ::= ("yes" | "no") " " [0-9]{1,3}\n'
    (tmp_path / "answer.gbnf").write_text(grammar)
    done = ggrun(*QUIET, "--grammar", grammar)
    assert re.fullmatch("(yes|no) [0-9]{1,3}\n", done.stdout), done.stderr
    assert ggrun(*QUIET, "--grammar-file", tmp_path / "answer.gbnf").stdout == done.stdout


def test_schemas_by_flag_and_file(tmp_path: Path) -> None:
    schema = '{"type": "array", "items": {"enum": ["king", "fox"]}, "minItems": 1, "maxItems": 3}'
    (tmp_path / "animals.json").write_text(schema)
    done = ggrun(*QUIET, "-j", schema)
    assert set(json.loads(done.stdout)) <= {"king", "fox"}
    assert ggrun(*QUIET, "-jf", tmp_path / "animals.json").stdout == done.stdout


@pytest.mark.parametrize(
    ("args", "status", "words"),
    [
        (["--grammar", "root ::= x"], 2, ["line 1, column 10", "no rule x"]),
        (["-j", '{"type": "frob"}'], 2, ["JSON schema", "frob"]),
        (["-j", "{}", "--grammar", 'root ::= "a"'], 2, ["both"]),
        (["--grammar", "root ::= .", "--grammar-file", "x"], 2, ["--grammar-file", "not both"]),
        (["-jf", "no-such-schema"], 1, ["no-such-schema", "No such file"]),
        (["-jf", "/dev/null"], 2, ["--json-schema-file", "nothing is in it"]),
    ],
    ids=lambda v: " ".join(v)[:40] if isinstance(v, list) else str(v),
)
def test_what_makes_no_sense_gets_one_line(
    args: list[str], status: int, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    line = complaint(here(capsys, *QUIET, *args), status)
    for word in words:
        assert word in line
