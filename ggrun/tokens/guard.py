"""Keeps text from outside from becoming special tokens when a chat template mixes it with our own.

Method: before rendering, a noncharacter is put into every special token that such a text contains; after
rendering, the result is split at its special tokens, of which only the template's own are whole; then the
noncharacter is taken out again. The model sees the text as it was written.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ggrun.tokens.matcher import Matcher

GUARD = "\ufdd0"  # a Unicode noncharacter: never part of text that is meant for others
_LONGEST = 64  # characters of a token that count where it may be completed; real tokens are shorter
_WORD = re.compile(r"[\w\s]*")


class Guard:
    """Breaks the given special tokens in text from outside."""

    def __init__(self, tokens: Iterable[str]) -> None:
        tokens = [token for token in tokens if len(token) > 1]
        self._matcher = Matcher(dict.fromkeys(tokens, 0))
        # Text next to the template's own could complete a token, so beginnings and ends of tokens count too;
        # but only with a sign in them, because the names of roles and fields must stay what they are.
        self._longest = min(max(map(len, tokens), default=0), _LONGEST)
        self._heads = _parts(token[:i] for token in tokens for i in range(1, min(len(token), _LONGEST)))
        self._tails = _parts(token[-i:] for token in tokens for i in range(1, min(len(token), _LONGEST)))
        self._all = "\0".join(tokens)

    def text(self, text: str, allowed: frozenset[str] = frozenset()) -> str:
        """`text` with all special tokens broken but those in `allowed`."""
        text = text.replace(GUARD, "")
        out = []
        last = 0
        for start, end, _ in self._matcher.find(text):
            if text[start:end] not in allowed:
                out += [text[last : start + 1], GUARD]
                last = start + 1
        return self._ends("".join(out) + text[last:])

    def tree(self, value: Any, allowed: frozenset[str] = frozenset()) -> Any:
        """A copy of JSON-like data with every string in it guarded, those that are keys too."""
        if isinstance(value, str):
            return self.text(value, allowed)
        if isinstance(value, Mapping):
            return {self.tree(key, allowed): self.tree(item, allowed) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.tree(item, allowed) for item in value]
        return value

    def _ends(self, text: str) -> str:
        sizes = range(1, min(self._longest, len(text) + 1))
        inside = len(text) < self._longest and not _WORD.fullmatch(text) and text in self._all
        before = inside or any(text[:size] in self._tails for size in sizes)
        after = inside or any(text[-size:] in self._heads for size in sizes)
        return GUARD * before + text + GUARD * after


def _parts(parts: Iterable[str]) -> set[str]:
    return {part for part in parts if not _WORD.fullmatch(part)}
