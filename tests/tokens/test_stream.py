"""Streaming gives the text of a batch, and never half a character."""

from hypothesis import given
from hypothesis import strategies as st

from ggrun.tokens import Tokenizer
from tests.tokens.build import CONTROL, bpe, spm

TOKENIZERS = [
    Tokenizer.from_metadata(bpe(("<|end|>", CONTROL), words=["Ã©", "ðŁĺĢ"])),
    Tokenizer.from_metadata(spm(("<|end|>", CONTROL), words={"▁": -1.0, "▁é": -2.0}, add_space_prefix=False)),
]


@given(st.sampled_from(TOKENIZERS), st.data(), st.booleans())
def test_any_ids_give_the_text_of_the_batch(tokenizer, data, skip):
    ids = data.draw(st.lists(st.integers(0, tokenizer.n_vocab - 1), max_size=40))
    stream = tokenizer.stream(skip_special=skip)
    pieces = [stream.push(token) for token in ids]
    assert "".join(pieces) + stream.flush() == tokenizer.decode(ids, skip_special=skip)


@given(st.sampled_from(TOKENIZERS), st.text(max_size=30))
def test_any_text_streams_in_whole_characters(tokenizer, text):
    stream = tokenizer.stream()
    pieces = [stream.push(token) for token in tokenizer.encode(text, add_special=False)]
    assert stream.flush() == ""
    assert "".join(pieces) == text
    assert "\ufffd" not in "".join(pieces) or "\ufffd" in text


def test_a_character_cut_off_is_shown_at_the_end():
    tokenizer = TOKENIZERS[0]
    stream = tokenizer.stream()
    assert [stream.push(token) for token in tokenizer.encode("漢")[:-1]] == ["", ""]
    assert stream.flush() == "\ufffd"
    assert [stream.push(token) for token in tokenizer.encode("a")] == ["a"]
