"""What a .cu file says of itself, in lines of its header comment:

    // variants: FORMAT=Q4_K|Q8_0 COLUMNS=1|2|4|8
    // variants: DIM=64|128|...
    //     TYPE=float|half
    // stack: sample top_k

A device compiles it with each of these choices of macros and no others: the emulator refuses them. Where
there are dots a macro may have any value; those that are named are checked. Several lines of variants add
up, indented ones continue the one before; a file without any is compiled as it is. The kernels named behind
`stack` may have a stack frame; in all others one is a mistake, as are registers that spill.
"""

import re
from itertools import product
from pathlib import Path

_VARIANTS = re.compile(r"^// variants: (.*(?:\n//    .*)*)$", re.MULTILINE)
_STACK = re.compile(r"^// stack: (.*)$", re.MULTILINE)

Defines = dict[str, str]


_ANY = "..."


def variants(path: Path) -> list[Defines]:
    """Every choice of macros that a file names."""
    lines = _lines(path)
    return [choice for line in lines for choice in _choices(line)] if lines else [{}]


def allowed(path: Path, choice: Defines) -> bool:
    """Whether a file may be compiled so."""
    lines = _lines(path) or [{}]
    return any(
        line.keys() == choice.keys()
        and all(choice[name] in values or _ANY in values for name, values in line.items())
        for line in lines
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
    return [dict(zip(line, choice, strict=True)) for choice in product(*named)]
