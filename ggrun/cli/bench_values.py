"""Lists and ranges as llama-bench's flags take them: 1,2 and 128-512+128 and 128-1024*2; pairs for -pg."""

import re
from pathlib import Path
from typing import Any

import click

from ggrun.cli.flags import Text, path_of

_RANGE = re.compile(r"([0-9]+)(?:-([0-9]+)(?:([+*])([0-9]+))?)?")
_LARGEST = (1 << 31) - 1
_MOST_VALUES = 1000  # a mistyped range is not a benchmark for weeks


class _List(Text):
    """Values between commas, or between slashes, of which click makes a list for each time it is given."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """A list of values; click's usual complaint for what is none."""
        try:
            return self.values(super().convert(value, param, ctx))
        except ValueError as error:
            self.fail(str(error), param, ctx)

    def values(self, text: str) -> list[Any]:
        """The values in a text; ValueError, in words, where there are none."""
        raise NotImplementedError


class Numbers(_List):
    """Whole numbers and ranges of them: first-last, first-last+step, first-last*factor."""

    name = "n,..."

    def __init__(self, least: int) -> None:
        self._least = least

    def values(self, text: str) -> list[int]:
        """All numbers, in the order of the text."""
        numbers = [number for part in re.split("[,/]", text) for number in _range(part)]
        for number in numbers:
            if not self._least <= number <= _LARGEST:
                raise ValueError(f"{number} is not between {self._least} and {_LARGEST}")
        return numbers


class Pairs(_List):
    """One pair pp,tg; or several, pp/tg,pp/tg."""

    name = "pp,tg"

    def values(self, text: str) -> list[tuple[int, int]]:
        """The pairs, in the order of the text."""
        parts = text.split(",") if "/" in text else [text.replace(",", "/")]
        return [self._pair(part) for part in parts]

    def _pair(self, text: str) -> tuple[int, int]:
        pair = re.fullmatch("([0-9]+)/([0-9]+)", text)
        if not pair:
            raise ValueError(f"{text.replace('/', ',')!r:.80} is not a pair of numbers pp,tg")
        prompt, generated = int(pair[1]), int(pair[2])
        if max(prompt, generated) > _LARGEST:
            raise ValueError(f"{text} has a number above {_LARGEST}")
        return prompt, generated


class Names(_List):
    """Some of a few names."""

    name = "name,..."

    def __init__(self, known: tuple[str, ...]) -> None:
        self._known = known

    def values(self, text: str) -> list[str]:
        """The names, in the order of the text."""
        names = re.split("[,/]", text)
        for name in names:
            if name not in self._known:
                raise ValueError(f"{name!r:.80} is not one of {', '.join(self._known)}")
        return names


class Files(_List):
    """Files between commas: paths have slashes. A file whose own name has a comma is one."""

    name = "file,..."

    def values(self, text: str) -> list[Path]:
        """The paths, in the order of the text."""
        names = [text] if Path(text).exists() else text.split(",")
        return [path_of(name) for name in names]


def _range(text: str) -> list[int]:
    """The numbers of one range, or the one number; ValueError for anything else."""
    parts = _RANGE.fullmatch(text)
    if not parts:
        raise ValueError(f"{text!r:.80} is neither a number nor a range (first-last, +step or *factor)")
    first = int(parts[1])
    last, step = int(parts[2] or first), int(parts[4] or 1)
    numbers = []
    while first <= last:
        numbers.append(first)
        after = first * step if parts[3] == "*" else first + step
        if after <= first or len(numbers) > _MOST_VALUES:
            raise ValueError(f"{text!r:.80} is a range of too many numbers")
        first = after
    if not numbers:
        raise ValueError(f"{text!r:.80} is a range that ends before it begins")
    return numbers
