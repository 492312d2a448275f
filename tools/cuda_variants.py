"""What a .cu file says of itself, in lines of its header comment:

    // variants: FORMAT=Q4_K|Q8_0 COLUMNS=1|2|4|8
    //     FUSED=0|1
    // stack: sample top_k

A device compiles it with each of these choices of macros and no others: the emulator refuses them. Several
lines of variants add up, and indented ones go on; a file without any is compiled as it is. What a FORMAT
brings along, a code book, is not written there. The kernels named behind `stack` may have a stack frame; in
all others one is a mistake, as are registers that spill.

A macro that has data and not a choice is NAME=*: any value is allowed, and 0 is what NVRTC is asked with.
Where a line says NAME=64|128|* it is asked with these two.
"""

import re
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from ggrun.kernels.code_books import format_defines

_VARIANTS = re.compile(r"^// variants: (.*(?:\n//    .*)*)$", re.MULTILINE)
_STACK = re.compile(r"^// stack: (.*)$", re.MULTILINE)

Defines = dict[str, str]


@dataclass(frozen=True)
class _Values:
    """What a macro may be: those that are named, or anything."""

    named: list[str]
    any: bool

    @classmethod
    def parse(cls, text: str) -> "_Values":
        """From a|b|*."""
        values = text.split("|")
        return cls([value for value in values if value != "*"] or ["*"], "*" in values)


Line = dict[str, _Values]


def variants(path: Path) -> list[Defines]:
    """Every choice of macros that a file names; * is one where nothing else is."""
    choices = [(line, product(*(values.named for values in line.values()))) for line in _lines(path)]
    named = [dict(zip(line, choice, strict=True)) for line, found in choices for choice in found]
    return [choice | _brought_along(choice) for choice in named]


def allows(path: Path, defines: Defines) -> bool:
    """Whether a file is compiled with these macros."""

    brought = _brought_along(defines)
    written = {name: value for name, value in defines.items() if brought.get(name) != value}

    def among(line: Line) -> bool:
        return line.keys() == written.keys() and all(
            values.any or written[name] in values.named for name, values in line.items()
        )

    return any(among(line) for line in _lines(path))


def may_have_stack(path: Path) -> set[str]:
    """The kernels that may have a stack frame."""
    return {name for line in _STACK.findall(path.read_text()) for name in line.split()}


def _brought_along(choice: Defines) -> Defines:
    """What a format is compiled with, besides its name."""
    macros = format_defines(choice["FORMAT"]) if "FORMAT" in choice else {}
    return {name: str(value) for name, value in macros.items() if name != "FORMAT"}


def _lines(path: Path) -> list[Line]:
    """The values of each macro, a line of variants each; one without macros where there is none."""
    found = _VARIANTS.findall(path.read_text())
    words = [[word.split("=", 1) for word in line.replace("//", "").split()] for line in found]
    return [{name: _Values.parse(values) for name, values in line} for line in words] or [{}]
