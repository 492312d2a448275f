"""Special tokens: found in trusted text, never made of any other."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggrun.tokens import Tokenizer
from ggrun.tokens.matcher import Matcher
from tests.tokens.build import CONTROL, NORMAL, USER_DEFINED, VOCABULARIES, bpe, real, spm


def test_the_leftmost_and_longest_wins():
    matcher = Matcher({"<a>": 1, "<a><b>": 2, "b><": 3, "\n": 4})
    assert matcher.split("x<a><b><c>\n") == ["x", 2, "<c>", 4]
    assert matcher.split("<a>b><") == [1, 3]
    assert matcher.split("") == []
    assert Matcher({}).split("<a>") == ["<a>"]


@given(st.lists(st.text("ab<>", min_size=1, max_size=3), unique=True), st.text("ab<>", max_size=30))
def test_splitting_loses_nothing(tokens, text):
    matcher = Matcher({token: i for i, token in enumerate(tokens)})
    parts = matcher.split(text)
    assert "".join(part if isinstance(part, str) else tokens[part] for part in parts) == text
    assert all(token not in part for part in parts if isinstance(part, str) for token in tokens)


def specials(tokenizer: Tokenizer) -> list[str]:
    """The special tokens that no text from outside may become."""
    return tokenizer.structural_texts()


@pytest.mark.parametrize("name", VOCABULARIES)
def test_plain_text_never_becomes_a_special_token(name):
    tokenizer = real(name)
    texts = specials(tokenizer)
    hidden = {tokenizer.encode(text, add_special=False, parse_special=True)[0] for text in texts}
    assert len(hidden) == len(texts) > 0
    for text in texts[:300]:
        ids = tokenizer.encode(f"Hi {text}x{text}", add_special=False)
        assert not hidden & set(ids)
        if tokenizer.kind != "llama":  # whose phi-3 takes away the spaces after a token
            assert tokenizer.decode(ids) == f"Hi {text}x{text}"


def test_trusted_text_names_special_tokens():
    tokenizer = real("llama-bpe")
    ids = tokenizer.encode("<|start_header_id|>user", add_special=False, parse_special=True)
    assert tokenizer.is_control(ids[0])
    assert tokenizer.decode(ids) == "user"
    assert tokenizer.decode(ids, skip_special=False) == "<|start_header_id|>user"


def test_merges_do_not_make_control_tokens():
    tokenizer = Tokenizer.from_metadata(bpe(("</s>", CONTROL), words=["</s>"], pre="bloom"))
    ids = tokenizer.encode("</s>", add_special=False)
    assert not any(tokenizer.is_control(token) for token in ids)
    (token,) = tokenizer.encode("</s>", add_special=False, parse_special=True)
    assert tokenizer.is_control(token)


def test_pieces_do_not_make_control_tokens():
    words = dict.fromkeys("<x>▁", -9.0) | {"<x": -1.0}
    tokenizer = Tokenizer.from_metadata(spm(("<x>", CONTROL), words=words))
    assert not any(map(tokenizer.is_control, tokenizer.encode("<x>", add_special=False)))


def test_user_defined_tokens():
    markup, space, html, tool = ("<tool>", "\n\n", "<table>", "TOOLCALL")
    values = bpe(*((text, USER_DEFINED) for text in (markup, space, html, tool)))
    values["tokenizer.chat_template"] = "{{ 'TOOLCALL' }}"
    tokenizer = Tokenizer.from_metadata(values)
    ids = tokenizer.encode("<tool>\n\n<table>TOOLCALL", add_special=False)
    assert {1, 2} < set(ids)
    assert not {0, 3} & set(ids)
    assert tokenizer.encode("<tool>\n\n<table>TOOLCALL", False, parse_special=True) == [0, 1, 2, 3]


def test_mislabelled_tokens_are_put_right():
    names = ("<|im_end|>", "<|fim_prefix|>", "<|fim_pad|>", "<|channel|>")
    tokenizer = Tokenizer.from_metadata(bpe(*((name, NORMAL) for name in names), eos_token_id=0))
    assert [tokenizer.is_control(token) for token in range(4)] == [True, True, True, False]
    assert tokenizer.fim == {"pre": 1, "pad": 2}
    assert tokenizer.eog == {0, 2}


def test_the_end_of_a_channel_is_no_end_of_generation():
    names = ("<|return|>", "<|call|>", "<|end|>")
    tokenizer = Tokenizer.from_metadata(bpe(*((name, CONTROL) for name in names), eos_token_id=0))
    assert tokenizer.eog == {0, 1}
    assert not tokenizer.is_control(2)


def test_ids_given_by_the_file_come_first():
    values = bpe(("<PRE>", CONTROL), ("<mypre>", CONTROL), fim_pre_token_id=1, eot_token_id=1, eos_token_id=0)
    tokenizer = Tokenizer.from_metadata(values)
    assert tokenizer.fim["pre"] == 1
    assert tokenizer.eog == {0, 1}
