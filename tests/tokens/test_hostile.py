"""Metadata and text from anywhere: an error with one clear line, or something defined; and never too slow."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ggrun.tokens import Tokenizer, TokenizerError, pre
from tests.tokens.build import CONTROL, bpe, metadata, spm, unigram, wordpiece

WORDS = {"▁": -1.0, "a": -2.0, "b": -2.0, "ab": -1.5, "▁ab": -1.0}
GOOD = {
    "bpe": bpe(("<|x|>", CONTROL), words=["ab"]),
    "spm": spm(("<|x|>", CONTROL), words=WORDS),
    "wordpiece": wordpiece("▁a", "b"),
    "unigram": unigram(WORDS, add_space_prefix=True),
    "gemma4": metadata("gemma4", [("<unk>", 2), ("a", 1), ("b", 1), ("ab", 1)], merges=["a b"]),
}
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.text(st.characters(exclude_categories=()), max_size=4), max_size=6),
    st.lists(st.integers(-9, 9), max_size=6).map(lambda values: np.array(values, np.int32)),
    st.lists(st.floats(width=32), max_size=6).map(lambda values: np.array(values, np.float32)),
)


def use(values):
    """Every path through a tokenizer."""
    tokenizer = Tokenizer.from_metadata(values)
    for text in ("ab <|x|> ab", "", "\ud800", "é漢"):
        for parse in (False, True):
            ids = tokenizer.encode(text, parse_special=parse)
            assert all(0 <= token < tokenizer.n_vocab for token in ids)
            tokenizer.decode(ids)
    for token in range(min(tokenizer.n_vocab, 300)):
        tokenizer.token_bytes(token)
    tokenizer.token_text(tokenizer.bos)


@settings(max_examples=300)
@given(st.sampled_from(sorted(GOOD)), st.data())
def test_mangled_metadata_is_an_error_or_works(kind, data):
    values = dict(GOOD[kind])
    keys = sorted(values) + [
        f"tokenizer.ggml.{key}" for key in ("bos_token_id", "eot_token_id", "add_eos_token")
    ]
    for key in data.draw(st.lists(st.sampled_from(keys), min_size=1, max_size=3)):
        if data.draw(st.booleans()):
            values.pop(key, None)
        else:
            values[key] = data.draw(VALUES)
    try:
        use(values)
    except TokenizerError as error:
        assert str(error)  # noqa: PT017
        assert "\n" not in str(error)  # noqa: PT017


@settings(max_examples=300)
@given(st.sampled_from(sorted(GOOD)), st.data())
def test_any_tokens_of_any_type(kind, data):
    texts = st.text(st.characters(exclude_categories=()), max_size=4)
    tokens = data.draw(st.lists(st.tuples(texts, st.integers(-1, 9)), min_size=1, max_size=8))
    scores = data.draw(st.lists(st.floats(width=32), min_size=len(tokens), max_size=len(tokens)))
    more = {"merges": data.draw(st.lists(texts, max_size=5)), "unknown_token_id": 0}
    model = GOOD[kind]["tokenizer.ggml.model"]
    try:
        use(metadata(model, tokens, scores, **more))
    except TokenizerError as error:
        assert "\n" not in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": None}, "takes and gives token ids only"),
        ({"model": "no_vocab"}, "takes and gives token ids only"),
        ({"model": "test"}, "takes and gives token ids only"),
        ({"model": "rwkv"}, "'rwkv' is not supported"),
        ({"model": 7}, "model is not a string"),
        ({"tokens": None}, "no list of tokens"),
        ({"tokens": []}, "no list of tokens"),
        ({"tokens": np.zeros(3)}, "tokens is not a list of strings"),
        ({"tokens": ["a"]}, "entries for a vocabulary of 1"),
        ({"token_type": np.zeros(3, np.float32)}, "token_type is not a list of integers"),
        ({"scores": np.zeros(3, np.int32)}, "scores is not a list of numbers"),
        ({"merges": None}, "without merges"),
        ({"bos_token_id": "a"}, "bos_token_id is not a token id"),
        ({"add_bos_token": "yes"}, "add_bos_token is not true or false"),
    ],
)
def test_the_error_names_what_is_wrong(change, message):
    values = GOOD["bpe"] | {f"tokenizer.ggml.{key}": value for key, value in change.items()}
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.from_metadata({key: value for key, value in values.items() if value is not None})


def test_an_id_outside_the_vocabulary_counts_as_absent():
    tokenizer = Tokenizer.from_metadata(GOOD["bpe"] | {"tokenizer.ggml.mask_token_id": 10**6})
    assert tokenizer.mask is None


@pytest.mark.parametrize("token", [-1, 10**6, 2**70])
def test_ids_outside_the_vocabulary_are_refused(token):
    tokenizer = Tokenizer.from_metadata(GOOD["bpe"])
    for call in (tokenizer.token_bytes, tokenizer.is_control, tokenizer.stream().push):
        with pytest.raises(TokenizerError, match="not in the vocabulary"):
            call(token)
    with pytest.raises(TokenizerError, match="not in the vocabulary"):
        tokenizer.decode([0, token])


def test_numpy_ids_are_ids():
    tokenizer = Tokenizer.from_metadata(GOOD["bpe"])
    assert tokenizer.decode(np.array(tokenizer.encode("ab"), np.int64)[1:]) == tokenizer.decode(
        tokenizer.encode("ab")[1:]
    )


def test_very_long_pieces_do_not_take_forever():
    start = time.process_time()
    tokenizer = Tokenizer.from_metadata(
        spm(("<|" + "y" * 100_000, CONTROL), words={"x" * 100_000: -1.0, "x": -2.0, "▁": -1.0})
    )
    assert len(tokenizer.encode("x" * 100, add_special=False)) == 101
    values = bpe(("z" * 100_000, CONTROL), words=["ab"])
    assert Tokenizer.from_metadata(values).encode("ab", add_special=False)
    assert time.process_time() - start < 5


LONG = 30_000
PATHOLOGICAL = ["1" * LONG, "1" * LONG + "a", " " * LONG, " " * LONG + "x", " \n" * (LONG // 2), "A" * LONG]
# One name of every family with regular expressions of its own.
FAMILIES = sorted({pre.find(name).regexes: name for name in pre.NAMES}.values())


@pytest.mark.parametrize("name", FAMILIES)
def test_long_runs_take_no_quadratic_time(name):
    """Measured are up to 0.6 s for 100,000 characters; quadratic ones took minutes."""
    tokenizer = Tokenizer.from_metadata(bpe(pre=name))
    for text in PATHOLOGICAL:
        start = time.process_time()
        tokenizer.encode(text)
        assert time.process_time() - start < 3


def test_a_long_word_in_spm_is_not_quadratic():
    tokenizer = Tokenizer.from_metadata(spm(words=WORDS | {"b▁a": -3.0, "aa": -1.0, "aaaa": -0.5}))
    start = time.process_time()
    assert len(tokenizer.encode("a" * LONG)) > LONG / 8
    tokenizer.encode(" " * LONG)
    assert time.process_time() - start < 5
