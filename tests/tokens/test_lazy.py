"""What is expensive happens late, once, and leaves nothing behind."""

import gc
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

from ggrun.tokens import Tokenizer, TokenizerError
from tests import shared
from tests.tokens.build import bpe, metadata


class Merges(list):
    """A list that can be watched."""


def test_importing_loads_neither_of_the_libraries():
    code = "import ggrun.tokens, sys; print([m for m in ('jinja2', 'tokenizers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_merges_are_freed_after_the_build():
    values = bpe(words=["ab"])
    values["tokenizer.ggml.merges"] = Merges(values["tokenizer.ggml.merges"])
    merges = weakref.ref(values["tokenizer.ggml.merges"])
    tokenizer = Tokenizer.from_metadata(values)
    del values
    assert tokenizer.token_bytes(0) == b"!"
    assert merges() is not None
    tokenizer.prepare()
    gc.collect()
    assert merges() is None
    assert tokenizer.decode(tokenizer.encode("ab")) == "ab"


def test_threads_share_one_build():
    tokenizer = Tokenizer.from_metadata(bpe(words=["ab"]))
    with ThreadPoolExecutor(8) as pool:
        assert len(set(map(tuple, pool.map(tokenizer.encode, ["abc"] * 32)))) == 1


def test_a_build_that_fails_fails_every_time():
    tokenizer = Tokenizer.from_metadata(metadata("bert", [("a", 1)]))
    for _ in range(2):
        with pytest.raises(TokenizerError, match="no unknown token"):
            tokenizer.encode("a")
    assert tokenizer.decode([0]) == "a"


def test_models_without_a_tokenizer_say_so():
    with pytest.raises(TokenizerError, match="takes and gives token ids only"):
        Tokenizer.from_gguf(shared.peer() / "archs" / "llama-dense.gguf")
