"""Text from token ids one by one, without ever showing half a character."""

import codecs
from collections.abc import Callable


class StreamDecoder:
    """Decodes a growing list of tokens: what `push` and `flush` return, put together, is the text.

    The bytes of a character may be spread over several tokens; they wait for the rest of it. Bytes that
    cannot be UTF-8 are shown as U+FFFD.
    """

    def __init__(self, text_of: Callable[[int], bytes]) -> None:
        self._text_of = text_of
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The text that this token completes, often ''. `TokenizerError` for an id outside the vocabulary."""
        return self._decoder.decode(self._text_of(token))

    def flush(self) -> str:
        """The end: U+FFFD for a character that was never completed, else ''. Then a new text may begin."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest
