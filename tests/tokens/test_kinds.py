"""What every kind of vocabulary does, on small made-up ones."""

import struct
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggrun.tokens import Tokenizer, TokenizerError, pre
from ggrun.tokens.charsmap import Charsmap
from tests.tokens.build import (
    BYTES,
    CONTROL,
    NORMAL,
    UNUSED,
    USER_DEFINED,
    bpe,
    metadata,
    spm,
    unigram,
    wordpiece,
)


def plain(tokenizer: Tokenizer, text: str) -> list[bytes]:
    return [tokenizer.token_bytes(token) for token in tokenizer.encode(text, add_special=False)]


@pytest.mark.parametrize("name", pre.NAMES)
def test_every_pre_tokenizer_keeps_the_text(name):
    if not pre.find(name).byte_level:
        tokens = [("<unk>", 2), ("▁", NORMAL), *((text, 6) for text in BYTES)]
        tokenizer = Tokenizer.from_metadata(metadata("gpt2", tokens, pre=name, merges=[]))
    else:
        tokenizer = Tokenizer.from_metadata(bpe(pre=name))
    text = "It's 12345 o'clock;\n\n  naïve  Ünïcode – 漢字 и 😀!\t\r\n1234567a  "
    assert tokenizer.decode(tokenizer.encode(text, add_special=False)) == text


def test_there_are_all_91_pre_tokenizers():
    assert len(pre.NAMES) == 91


def test_an_unknown_pre_tokenizer_is_named():
    with pytest.raises(TokenizerError, match="'klingon-7b'"):
        Tokenizer.from_metadata(bpe(pre="klingon-7b"))


def test_digits_in_threes_from_the_right():
    tokenizer = Tokenizer.from_metadata(bpe(pre="afmoe", words=["123", "234", "345", "567", "789"]))
    assert plain(tokenizer, "1234567") == [b"1", b"234", b"567"]
    long = Tokenizer.from_metadata(bpe(pre="afmoe", words=["777"]))
    assert plain(long, "7" * 2000) == [b"77", *[b"777"] * 666]


def test_merges_in_order_of_rank():
    tokenizer = Tokenizer.from_metadata(bpe(words=["ab", "bc"]))
    assert plain(tokenizer, "abc") == [b"ab", b"c"]


@pytest.mark.parametrize(("name", "pieces"), [("llama-bpe", [b"abc"]), ("qwen2", [b"a", b"b", b"c"])])
def test_whole_words_win_over_merges_in_some_families(name, pieces):
    values = bpe(("abc", NORMAL), pre=name)
    assert plain(Tokenizer.from_metadata(values), "abc") == pieces


def test_merges_that_fit_no_token_are_ignored():
    values = bpe(words=["ab"])
    values["tokenizer.ggml.merges"] += ["x y", "", " ", "nospace", "a b", "ab ab ab", "\udc80 b"]
    assert plain(Tokenizer.from_metadata(values), "abxy") == [b"ab", b"x", b"y"]


def test_spm_merges_by_score():
    words = {"▁": -5.0, "a": -5.0, "b": -5.0, "c": -5.0, "ab": -2.0, "bc": -1.0, "▁a": -3.0}
    tokenizer = Tokenizer.from_metadata(spm(words=words, add_bos_token=False))
    assert plain(tokenizer, "abc") == [b" a", b"bc"]
    assert tokenizer.decode(tokenizer.encode(" abc é")) == " abc é"


def test_spm_spells_what_it_does_not_know_in_bytes():
    tokenizer = Tokenizer.from_metadata(spm(words={"▁": -1.0}))
    assert plain(tokenizer, "é") == [b" ", b"\xc3", b"\xa9"]


def test_a_space_before_text_after_a_special_token():
    tokenizer = Tokenizer.from_metadata(spm(("<|x|>", CONTROL), words={"▁": -2.0, "a": -2.0, "▁a": -1.0}))
    ids = tokenizer.encode("a<|x|>a", add_special=False, parse_special=True)
    assert [tokenizer.token_bytes(token) for token in ids] == [b" a", b"<|x|>", b" a"]


def test_a_continuation_keeps_its_space():
    tokenizer = Tokenizer.from_metadata(spm(words={"▁": -2.0, "a": -2.0, "▁a": -1.0}))
    ids = tokenizer.encode("a", add_special=False)
    assert tokenizer.decode(ids) == "a"
    assert tokenizer.stream().push(ids[0]) == " a"


def test_wordpiece():
    tokenizer = Tokenizer.from_metadata(wordpiece("▁play", "ing", "▁is", "▁fun", "▁!"))
    assert plain(tokenizer, "Playing is fun!") == [b" play", b"ing", b" is", b" fun", b" !"]
    ids = tokenizer.encode("playing")
    assert (ids[0], ids[-1]) == (tokenizer.bos, tokenizer.sep)
    assert tokenizer.decode(ids) == "playing"
    assert tokenizer.encode("zzz " + "play" * 26, add_special=False) == [tokenizer.unk] * 2


def test_wordpiece_can_keep_case():
    values = wordpiece("▁Play") | {"tokenizer.ggml.normalizer.lowercase": False}
    assert plain(Tokenizer.from_metadata(values), "Play") == [b" Play"]


def test_unigram_takes_the_best_sum():
    words = {"▁": -3.0, "a": -3.0, "b": -3.0, "ab": -4.0, "▁ab": -5.0, "▁a": -4.5}
    tokenizer = Tokenizer.from_metadata(unigram(words, add_space_prefix=True, remove_extra_whitespaces=True))
    assert plain(tokenizer, "  ab   a ") == [b" ab", b" a"]
    ids = tokenizer.encode("ab")
    assert ids[-1] == tokenizer.eos
    assert tokenizer.decode(ids) == "ab"


def charsmap(rules: dict[bytes, bytes]) -> bytes:
    """A tiny double array for keys of one or two bytes: every node in a block of 256 of its own."""
    texts, starts = b"", {}
    for key, replacement in rules.items():
        starts[key] = len(texts)
        texts += replacement + b"\0"
    units = [0] * 256 * (2 + 2 * len(rules))
    block = {b"": 256}
    for key in sorted(rules):
        for prefix in (key[: i + 1] for i in range(len(key))):
            block.setdefault(prefix, 256 * (1 + len(block)))
    units[0] = 256 << 10
    for prefix, base in block.items():
        if prefix:
            at = block[prefix[:-1]] ^ prefix[-1]
            units[at] = (at ^ base) << 10 | (prefix in rules) << 8 | prefix[-1]
            if prefix in rules:
                units[base] = starts[prefix] | 1 << 31
    return struct.pack("<I", 4 * len(units)) + np.array(units, "<u4").tobytes() + texts


def test_charsmap_replaces_the_longest_run():
    normalize = Charsmap(charsmap({b"A": b"a", b"AB": b"<ab>", b"\t": b" ", b"x": b""})).normalize
    assert normalize("A\tABxAxB") == "a <ab>aB"


@given(st.binary(max_size=80), st.text(max_size=20))
def test_a_damaged_charsmap_does_no_harm(blob, text):
    size = struct.pack("<I", len(blob) // 8 * 4)
    with suppress(TokenizerError):
        Charsmap(size + blob).normalize(text.encode("utf-8", "replace").decode())


def test_unigram_uses_the_charsmap():
    blob = np.frombuffer(charsmap({b"A": b"a"}), np.uint8)
    tokenizer = Tokenizer.from_metadata(unigram({"a": -1.0}, precompiled_charsmap=blob))
    assert plain(tokenizer, "A") == [b"a"]


def test_lone_surrogates_become_replacement_characters():
    tokenizer = Tokenizer.from_metadata(bpe())
    assert tokenizer.decode(tokenizer.encode("a\ud800b\udc80")) == "a\ufffdb\ufffd"
    assert tokenizer.decode(tokenizer.encode("\ud83d\ude00")) == "😀"


def test_bytes_of_unused_and_broken_tokens():
    tokenizer = Tokenizer.from_metadata(
        metadata(
            "gpt2", [("a", UNUSED), ("\udcff", NORMAL), ("<0xZZ>", 6), ("", NORMAL), ("q", 99)], merges=[]
        )
    )
    assert [tokenizer.token_bytes(i) for i in range(5)] == [b"", b"\xff", b"<0xZZ>", b"", b""]


def test_phi3_swallows_white_space_after_special_tokens():
    values = spm(("<|end|>", CONTROL), words={"▁": -2.0, "a": -2.0, "\n": -3.0})
    values["general.name"] = "Phi-3 mini"
    tokenizer = Tokenizer.from_metadata(values)
    ids = tokenizer.encode("<|end|> \n a", add_special=False, parse_special=True)
    assert [tokenizer.token_bytes(token) for token in ids] == [b"<|end|>", b" ", b"a"]


def test_mask_swallows_white_space_before_it():
    values = bpe(("<mask>", USER_DEFINED), pre="jina-v2-de")
    tokenizer = Tokenizer.from_metadata(values)
    assert plain(tokenizer, "a <b") == [b"a", b" ", b"<", b"b"]
    ids = tokenizer.encode("a  <mask> b", add_special=False, parse_special=True)
    assert tokenizer.decode(ids, skip_special=False) == "a<mask> b"
