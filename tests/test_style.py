"""Budgets that the machine checks: sizes of files and functions, docstrings, types, ruff and mypy."""

import ast
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(
    p
    for folder in ("ggrun", "kernels", "tests", "tools", "benchmarks")
    for p in (ROOT / folder).rglob("*.py")
    if not p.stem.endswith("_pb2")  # generated
)
PRODUCT = [p for p in FILES if p.relative_to(ROOT).parts[0] in ("ggrun", "kernels")]
CPP = sorted(
    p
    for folder in ("kernels", "tests", "tools")
    for p in (ROOT / folder).rglob("*")
    if p.suffix in (".cu", ".cuh", ".h", ".cpp")
)

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(paths: list[Path]) -> Iterator[tuple[str, Function]]:
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, Function):
                yield f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", node


def length(function: Function) -> int:
    """Lines of a function, its docstring and signature not counted."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def test_files_are_short() -> None:
    lengths = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in FILES + CPP}
    assert {name: n for name, n in lengths.items() if n > 400} == {}


def test_functions_are_short() -> None:
    lengths = sorted(length(f) for _, f in functions(PRODUCT))
    assert statistics.median(lengths) <= 8
    assert lengths[int(len(lengths) * 0.95)] <= 40


def test_lines_fit() -> None:
    long = [
        f"{p.name}:{i}"
        for p in FILES + CPP
        for i, line in enumerate(p.read_text().splitlines(), 1)
        if len(line) > 110
    ]
    assert long == []


def test_modules_have_docstrings() -> None:
    assert [
        str(p) for p in FILES if p.read_text().strip() and not ast.get_docstring(ast.parse(p.read_text()))
    ] == []


def test_c_files_say_what_they_are() -> None:
    assert [str(p) for p in CPP if not p.read_text().startswith("// ")] == []


def test_functions_are_typed() -> None:
    def typed(f: Function) -> bool:
        arguments = [*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs]
        return (
            all(a.annotation or a.arg.strip("_") in ("self", "cls") for a in arguments)
            and f.returns is not None
        )

    assert [name for name, f in functions(PRODUCT) if not typed(f)] == []


@pytest.mark.parametrize(
    "command", [["ruff", "check"], ["ruff", "format", "--check"], ["mypy"]], ids=" ".join
)
def test_tools_agree(command: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
