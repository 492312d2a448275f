"""What a .cu file says of itself, in lines of its header comment:

    // variants: FORMAT=Q4_K|Q8_0 COLUMNS=1|2|4|8
    // variants: DIM=64|128|...
    //     TYPE=float|half
    // stack: sample top_k

A device compiles it with each of these choices of macros and no others: the emulator refuses them. Where
there are dots a macro may have any value; those that are named are checked. Several lines of variants add
up, indented ones continue the one before; a file without any is compiled as it is. What a FORMAT brings
along, a code book, is not written there. The kernels named behind `stack` may have a stack frame; in all
others one is a mistake, as are registers that spill.
"""

import re
from itertools import product
from pathlib import Path

from ggrun.kernels.code_books import format_defines

_VARIANTS = re.compile(r"^// variants: (.*(?:\n//    .*)*)$", re.MULTILINE)
_STACK = re.compile(r"^// stack: (.*)$", re.MULTILINE)

_ANY = "..."

Defines = dict[str, str]


def variants(path: Path) -> list[Defines]:
    """Every choice of macros that a file names."""
    lines = _lines(path)
    return [choice for line in lines for choice in _choices(line)] if lines else [{}]


def allowed(path: Path, choice: Defines) -> bool:
    """Whether a file may be compiled so."""
    brought = _brought_along(choice)
    written = {name: value for name, value in choice.items() if brought.get(name) != value}
    return any(
        line.keys() == written.keys()
        and all(written[name] in values or _ANY in values for name, values in line.items())
        for line in _lines(path) or [{}]
    )


def may_have_stack(path: Path) -> set[str]:
    """The kernels that may have a stack frame."""
    return {name for line in _STACK.findall(path.read_text()) for name in line.split()}


def _lines(path: Path) -> list[dict[str, list[str]]]:
    """The values of each macro, for each line."""
    found = _VARIANTS.findall(path.read_text())
    pairs = [[word.split("=", 1) for word in line.replace("//", "").split()] for line in found]
    return [{name: values.split("|") for name, values in line} for line in pairs]


def _choices(line: dict[str, list[str]]) -> list[Defines]:
    named = [[value for value in values if value != _ANY] for values in line.values()]
    choices = [dict(zip(line, choice, strict=True)) for choice in product(*named)]
    return [choice | _brought_along(choice) for choice in choices]


def _brought_along(choice: Defines) -> Defines:
    """What a format is compiled with, besides its name."""
    macros = format_defines(choice["FORMAT"]) if "FORMAT" in choice else {}
    return {name: str(value) for name, value in macros.items() if name != "FORMAT"}
