"""What a .cu file says of itself, in lines of its header comment:

    // variants: FORMAT=Q4_K|Q8_0 COLUMNS=1|2|4|8
    // stack: sample top_k

A device compiles it with each of these choices of macros and no others: the emulator refuses them. Several
lines of variants add up; a file without any is compiled as it is. What a FORMAT brings along, a code book, is
not written there. The kernels named behind `stack` may have a
stack frame; in all others one is a mistake, as are registers that spill.

A macro that has data and not a choice is NAME=*: any value is allowed, and 0 is what NVRTC is asked with.
"""

import re
from itertools import product
from pathlib import Path

from ggrun.kernels.code_books import format_defines

_VARIANTS = re.compile(r"^// variants: (.*)$", re.MULTILINE)
_STACK = re.compile(r"^// stack: (.*)$", re.MULTILINE)

Defines = dict[str, str]


def variants(path: Path) -> list[Defines]:
    """Every choice of macros that a file is compiled with."""
    lines = _VARIANTS.findall(path.read_text())
    return [choice for line in lines for choice in _choices(line)] if lines else [{}]


def allows(path: Path, defines: Defines) -> bool:
    """Whether a file is compiled with these macros."""

    def same(choice: Defines) -> bool:
        return choice.keys() == defines.keys() and all(v in ("*", defines[k]) for k, v in choice.items())

    return any(same(choice) for choice in variants(path))


def may_have_stack(path: Path) -> set[str]:
    """The kernels that may have a stack frame."""
    return {name for line in _STACK.findall(path.read_text()) for name in line.split()}


def _choices(line: str) -> list[Defines]:
    names, values = zip(*(word.split("=", 1) for word in line.split()), strict=True)
    choices = [dict(zip(names, choice, strict=True)) for choice in product(*(v.split("|") for v in values))]
    return [choice | _brought_along(choice) for choice in choices]


def _brought_along(choice: Defines) -> Defines:
    macros = format_defines(choice["FORMAT"]) if "FORMAT" in choice else {}
    return {name: str(value) for name, value in macros.items()}
