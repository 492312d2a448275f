"""From preprocessed CUDA C to C++: declarations of shared memory, and a list of the kernels.

Everything else that CUDA adds to C++ is made of macros and functions, in shim/.
"""

import re

_KERNEL = re.compile(
    r'extern\s+"C"\s+__global__\s+(?:void\s+)?'
    r"(?:__launch_bounds__\s*\((?P<bounds>(?:[^()]|\([^()]*\))*)\)\s*)?(?:void\s+)?(?P<name>\w+)\s*\("
)
_DYNAMIC = re.compile(r"extern\s+__shared__\s+(?P<rest>[^;]*?)\s*(?P<name>\w+)\s*\[\s*\]\s*;")
_STATIC = re.compile(r"\b__shared__\s+(?P<rest>[^;]*);")
_ALIGN = re.compile(r"__align__\s*\(((?:[^()]|\([^()]*\))*)\)\s*")
_DECLARATION = re.compile(r"(?P<type>.*[\w>]|)\s*\b(?P<name>\w+)\s*(?P<size>(?:\[[^\]]*\]\s*)*)", re.DOTALL)


class SourceError(Exception):
    """A declaration that the emulator does not understand."""


def to_cpp(text: str) -> str:
    """What a C++ compiler takes, after shim/cuda_emulator.h. Lines stay where they are."""
    kernels = {match["name"]: match["bounds"] or "" for match in _KERNEL.finditer(text)}
    text = _STATIC.sub(_static, _DYNAMIC.sub(_dynamic, text))
    exports = "".join(f"EMU_EXPORT({name}, {bounds})\n" for name, bounds in kernels.items())
    return f'{text}\n# 1 "exports"\n{exports}'


def _dynamic(match: re.Match[str]) -> str:
    align, kind = _alignment(match["rest"])
    pointer = f"{kind.strip()}*"
    line = (
        f"{pointer} const {match['name']} = ({pointer})::emu::dynamic_shared({align}, ::emu::Where::here());"
    )
    return line + "\n" * match[0].count("\n")


def _static(match: re.Match[str]) -> str:
    align, rest = _alignment(match["rest"])
    first, *others = _split(rest)
    found = _DECLARATION.fullmatch(first.strip())
    if not found or not found["type"]:
        raise SourceError(f"a declaration of shared memory that is too hard: {' '.join(match[0].split())}")
    kind = found["type"]
    declarations = [found, *(_DECLARATION.fullmatch(other.strip()) for other in others)]
    parts = [
        f"auto& {d['name']} = ::emu::shared<{kind} {d['size']}>([] {{}}, {align});" for d in declarations if d
    ]
    return " ".join(" ".join(parts).split()) + "\n" * match[0].count("\n")


def _alignment(rest: str) -> tuple[str, str]:
    found = _ALIGN.search(rest)
    return (found[1] if found else "1"), _ALIGN.sub("", rest)


def _split(text: str) -> list[str]:
    """At the commas that are in no brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[(<{") - (letter in "])>}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts
