"""The floors: a package imports only from those to its left, and its imports form no cycle."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# docs/architecture.md draws them. `errors` and `bundled` lie below all: they import nothing of ours.
FLOORS = [
    "errors",
    "bundled",
    "kernels",
    "gguf",
    "tokens",
    "arch",
    "plan",
    "devices",
    "engine",
    "rpc",
    "llm",
    "server",
    "cli",
    "__main__",
]
SOURCES = sorted((ROOT / "ggrun").rglob("*.py"))
MODULES = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in SOURCES}
KERNELS = sorted((ROOT / "kernels" / "cpu").rglob("*.py"))
CUDA = sorted(p for p in (ROOT / "kernels" / "cuda").rglob("*") if p.suffix in (".cu", ".cuh"))


def imported(path: Path) -> set[str]:
    """The modules of ours that a file imports, at the top or inside functions, but for type checking only."""
    tree = ast.parse(path.read_text())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys()
            found |= submodules if len(submodules) == len(node.names) else {node.module, *submodules}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.split(".")[0] == "ggrun" and name != "ggrun"}


def floor(module: str) -> str:
    return module.split(".")[1]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    own = path.relative_to(ROOT / "ggrun").with_suffix("").parts[0]
    if own == "__init__":
        return
    below = FLOORS[: FLOORS.index(own) + 1]
    used = {floor(name) for name in imported(path)} & set(FLOORS)
    assert used <= set(below), f"{path.name} is on floor {own} and imports from above"


@pytest.mark.parametrize("path", KERNELS, ids=lambda p: str(p.relative_to(ROOT)))
def test_kernels_know_nothing_of_ggrun(path: Path) -> None:
    assert not imported(path)


@pytest.mark.parametrize("path", CUDA, ids=lambda p: str(p.relative_to(ROOT)))
def test_cuda_sources_keep_to_what_nvrtc_and_the_emulator_have(path: Path) -> None:
    text = re.sub(r"//.*", "", path.read_text())
    included = set(re.findall(r"#include\s+(\S+)", text))
    assert {name for name in included if name.startswith("<")} <= {"<cuda_fp16.h>", "<cuda_bf16.h>"}
    assert not re.search(r"\bINFINITY\b", text)
    assert path.name == "ptx.cuh" or not re.search(r"\basm\b", text), "inline PTX belongs to ptx.cuh"


def test_every_package_has_a_floor() -> None:
    packages = {p.stem for p in (ROOT / "ggrun").iterdir() if p.suffix == ".py" or p.is_dir()}
    assert packages - {"__init__", "__pycache__", "models"} <= set(FLOORS)


def test_no_module_cycles() -> None:
    edges = {
        name: {m for m in imported(path) if m in MODULES and m != name} for name, path in MODULES.items()
    }
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join([*trail[trail.index(name) :], name])
        if name not in done:
            for other in edges[name]:
                visit(other, (*trail, name))
            done.add(name)

    for name in MODULES:
        visit(name, ())
