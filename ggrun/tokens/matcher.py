"""Finds special tokens in text: the leftmost one, and the longest of those that start there."""

import re
from collections.abc import Iterator, Mapping


class Matcher:
    """Splits text at the given special tokens (text -> id)."""

    def __init__(self, tokens: Mapping[str, int]) -> None:
        self.tokens = dict(tokens)
        lengths: dict[str, set[int]] = {}
        for text in self.tokens:
            lengths.setdefault(text[0], set()).add(len(text))
        self._lengths = {first: sorted(found, reverse=True) for first, found in lengths.items()}
        # Only places that start like a token are looked at; each then costs one look-up per possible length.
        self._starts = re.compile("[" + "".join(map(re.escape, lengths)) + "]") if lengths else None

    def find(self, text: str) -> Iterator[tuple[int, int, int]]:
        """(start, end, id) of every special token in `text`, in order, none overlapping."""
        position = 0
        while self._starts and (start := self._starts.search(text, position)):
            position = start.start()
            end = self._end(text, position)
            if end:
                yield position, end, self.tokens[text[position:end]]
            position = end or position + 1

    def split(self, text: str) -> list[str | int]:
        """`text` as its special tokens (ids) and the text between them, which is never empty."""
        parts: list[str | int] = []
        last = 0
        for start, end, token in self.find(text):
            if start > last:
                parts.append(text[last:start])
            parts.append(token)
            last = end
        if last < len(text):
            parts.append(text[last:])
        return parts

    def _end(self, text: str, start: int) -> int:
        """Where the longest token that starts at `start` ends; 0 for none."""
        for length in self._lengths[text[start]]:
            if text[start : start + length] in self.tokens:
                return min(start + length, len(text))
        return 0
