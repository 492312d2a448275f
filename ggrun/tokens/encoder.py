"""From text without special tokens to ids: the encoder of a vocabulary is built when it is first needed."""

from collections.abc import Callable
from threading import Lock
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from ggrun.tokens.errors import TokenizerError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as HfTokenizer

Encode = Callable[[str], list[int]]
P = ParamSpec("P")
T = TypeVar("T")


class LazyEncoder:
    """Builds an encoder at the first call, and then forgets the recipe (with it the list of merges)."""

    def __init__(self, build: Callable[[], Encode]) -> None:
        self._build: Callable[[], Encode] | None = build
        self._encode: Encode | None = None
        self._lock = Lock()

    def __call__(self, text: str) -> list[int]:
        """The ids of `text`."""
        return (self._encode or self.prepare())(text)

    def prepare(self) -> Encode:
        """Builds now what else the first call would."""
        with self._lock:
            if self._build is not None:
                self._encode = checked(self._build)
                self._build = None
            assert self._encode is not None
            return self._encode


def checked(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Calls into the `tokenizers` library; whatever it raises becomes a `TokenizerError`."""
    try:
        return function(*args, **kwargs)
    except TokenizerError:
        raise
    except BaseException as error:
        # A panic of the Rust code is no Exception, and its class cannot be imported.
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise TokenizerError(f"the vocabulary cannot be used: {error}") from error
        raise


def hf_encoder(tokenizer: "HfTokenizer") -> Encode:
    """An encoder that runs a tokenizer of the `tokenizers` library."""

    def encode(text: str) -> list[int]:
        return checked(tokenizer.encode, text, add_special_tokens=False).ids

    return encode
