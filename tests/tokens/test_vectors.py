"""llama.cpp's own vocabularies, texts and token ids, in both directions."""

from functools import cache

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ggrun.tokens.vocab import Kind
from tests import shared
from tests.tokens.build import VOCABULARIES, real


def cases(name: str) -> list[tuple[str, list[int]]]:
    path = shared.vocab() / f"ggml-vocab-{name}.gguf"
    with open(f"{path}.inp", encoding="utf-8", newline="") as file:
        texts = file.read().split("\n__ggml_vocab_test__\n")
    if texts[-1] == "":
        texts.pop()
    with open(f"{path}.out", encoding="utf-8") as file:
        ids = [[int(token) for token in line.split()] for line in file.read().splitlines()]
    return list(zip(texts, ids, strict=True))


@pytest.mark.parametrize("name", VOCABULARIES)
def test_texts_become_the_ids_of_llama_cpp(name):
    tokenizer = real(name)
    for text, ids in cases(name):
        assert tokenizer.encode(text, add_special=False) == ids


@pytest.mark.parametrize("name", VOCABULARIES)
def test_ids_become_the_text_again(name):
    tokenizer = real(name)
    for text, ids in cases(name):
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("name", VOCABULARIES)
def test_a_page_of_prose_comes_back(name):
    text = next(shared.corpus().glob("*.txt")).read_text("utf-8")[5_000:12_000]
    tokenizer = real(name)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert len(ids) < len(text) / 2


@cache
def single_bytes(name: str) -> set[bytes]:
    tokenizer = real(name)
    pieces = map(tokenizer.token_bytes, range(tokenizer.n_vocab))
    return {piece for piece in pieces if len(piece) == 1}


def test_only_falcon_lacks_bytes():
    whole = {name for name in VOCABULARIES if len(single_bytes(name)) >= 243}  # what UTF-8 uses
    assert whole == set(VOCABULARIES) - {"falcon"}


@pytest.mark.parametrize("name", VOCABULARIES)
@settings(max_examples=60)
@given(text=st.text(max_size=40))
def test_any_text_comes_back(name, text):
    """Only ▁ is lost, where it stands for a space, and the bytes that falcon has no tokens for."""
    tokenizer = real(name)
    assume({bytes([byte]) for byte in text.encode()} <= single_bytes(name))
    ids = tokenizer.encode(text, add_special=False)
    kept = text if tokenizer.kind is Kind.BPE else text.replace("▁", " ")
    assert tokenizer.decode(ids) == kept
    stream = tokenizer.stream()
    streamed = "".join(map(stream.push, ids)) + stream.flush()
    assert streamed == (" " + kept if tokenizer.kind is Kind.SPM and text else kept)


@pytest.mark.parametrize("name", VOCABULARIES)
def test_every_token_has_bytes(name):
    tokenizer = real(name)
    lengths = [len(tokenizer.token_bytes(token)) for token in range(tokenizer.n_vocab)]
    assert sum(length > 0 for length in lengths) > 0.99 * tokenizer.n_vocab


def test_ends_of_generation():
    texts = {name: {real(name).token_text(token) for token in real(name).eog} for name in VOCABULARIES}
    assert texts["llama-bpe"] == {"<|end_of_text|>", "<|eot_id|>"}
    assert texts["gemma-4"] == {"<eos>", "<turn|>", "<|tool_response>"}
    assert texts["phi-3"] == {"</s>", "<|endoftext|>", "<|end|>"}
    assert texts["qwen2"] == {"<|endoftext|>", "<|im_end|>", "</s>"}


def test_bos_is_added_where_the_model_wants_it():
    assert real("llama-bpe").encode("a")[0] == real("llama-bpe").bos
    assert real("gemma-4").encode("a")[0] == real("gemma-4").bos
    assert real("qwen2").encode("a") == real("qwen2").encode("a", add_special=False)
