"""SentencePiece's precompiled character map: replaces characters (and runs of them) before encoding.

The blob is a length, a double array over the bytes of what is to be replaced (a darts-clone trie: source
github.com/s-yata/darts-clone), and the replacements, each ended by a zero byte. Every index in it is checked:
one that leads outside ends the search like a missing entry.
"""

import numpy as np

from ggrun.tokens.errors import TokenizerError

_LONGEST = 16  # characters; what is replaced is never longer in the maps that SentencePiece makes


class Charsmap:
    """The character map of a Unigram vocabulary."""

    def __init__(self, blob: bytes) -> None:
        size = int.from_bytes(blob[:4], "little")
        if len(blob) < 8 or size % 4 or not 4 <= size <= len(blob) - 4:
            raise TokenizerError("tokenizer.ggml.precompiled_charsmap is damaged")
        self._units: list[int] = np.frombuffer(blob, "<u4", size // 4, 4).tolist()
        self._texts = blob[4 + size :]
        # What replaces a character; None if longer runs start with it.
        self._single: dict[str, str | None] = {}

    def normalize(self, text: str) -> str:
        """`text` with the longest run of characters that the map knows replaced, from left to right."""
        out = []
        position = 0
        while position < len(text):
            piece = text[position]
            if piece not in self._single:
                self._single[piece] = self._only(piece)
            replacement = self._single[piece]
            taken = 1
            if replacement is None:
                taken, replacement = self._longest(text[position : position + _LONGEST])
            out.append(replacement)
            position += taken
        return "".join(out)

    def _only(self, character: str) -> str | None:
        """What always replaces this character; None where that depends on what follows."""
        key = character.encode()
        found, node = self._walk(key)
        if node is not None and any(self._step(node, byte) is not None for byte in range(1, 256)):
            return None
        return self._replacement(found[1]) if found and found[0] == len(key) else character

    def _longest(self, text: str) -> tuple[int, str]:
        """(characters taken, what replaces them) at the start of `text`."""
        key = text.encode()
        found, _ = self._walk(key)
        if not found:
            return 1, text[0]
        taken = len(key[: found[0]].decode(errors="ignore"))
        return (taken, self._replacement(found[1])) if taken else (1, text[0])

    def _walk(self, key: bytes) -> tuple[tuple[int, int] | None, int | None]:
        """((bytes, value) of the longest entry that starts `key`, the node after all of `key`)."""
        found = None
        node: int | None = self._child(0, self._units[0])
        for i, byte in enumerate(key):
            reached = None if node is None else self._step(node, byte)
            if reached is None:
                return found, None
            node, value = reached
            if value is not None:
                found = i + 1, value
        return found, node

    def _step(self, node: int, byte: int) -> tuple[int | None, int | None] | None:
        """(the node, the value of an entry that ends here) after one more byte; None if none has it."""
        index = node ^ byte
        if not byte or index >= len(self._units) or self._units[index] & 0x800000FF != byte:
            return None
        unit = self._units[index]
        child = self._child(index, unit)
        if child is None or not unit >> 8 & 1:
            return child, None
        return child, self._units[child] & 0x7FFFFFFF

    def _child(self, index: int, unit: int) -> int | None:
        child = index ^ (unit >> 10) << ((unit & 0x200) >> 6)
        return child if child < len(self._units) else None

    def _replacement(self, start: int) -> str:
        end = self._texts.find(b"\0", start)
        return self._texts[start : end if end >= 0 else len(self._texts)].decode(errors="replace")
