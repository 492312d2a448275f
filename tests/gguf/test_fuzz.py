"""Damaged files: GGUFError or success, never another exception, a hang, or memory beyond the file's size."""

import random
import struct
import tracemalloc
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ggrun.gguf import FORMATS, GGUF, GGUFError, Source, write_gguf
from tests.gguf.build import gguf

NO_HANG = timedelta(seconds=60)
METADATA = {
    "general.architecture": "llama",
    "general.alignment": 32,
    "llama.block_count": 2,
    "llama.rope.freq_base": 10000.0,
    "llama.causal": True,
    "tokenizer.ggml.tokens": ["<s>", "▁a", "", "\udcff"],
    "tokenizer.ggml.scores": [0.5, -1.0],
    "tokenizer.ggml.flags": [True, False],
}
NUMBERS = [
    0,
    1,
    2,
    3,
    4,
    5,
    7,
    8,
    9,
    31,
    32,
    33,
    255,
    2**16,
    2**31,
    2**32 - 1,
    2**40,
    2**60,
    2**63,
    2**64 - 1,
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    tensors = [
        Source("a", (32, 2), FORMATS["Q4_0"], bytes(36)),
        Source("b", (256,), FORMATS["Q4_K"], bytes(144)),
        Source("c", (4, 2, 1, 1), FORMATS["F32"], bytes(32)),
    ]
    return write_gguf(tmp_path_factory.mktemp("fuzz") / "m.gguf", METADATA, tensors)[0].read_bytes()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz") / "damaged.gguf"


def survives(path, raw):
    """Open the bytes as a file; say whether they are a model, after checking that nothing else happened."""
    path.write_bytes(raw)
    tracemalloc.start()
    try:
        opened = GGUF(path)
        assert all(t.data.size == t.rows * t.row_bytes <= len(raw) for t in opened.tensors.values())
    except GGUFError as error:
        return not str(error).isprintable()  # a message that is none counts as a wrong answer
    finally:
        # Python's objects are larger than what they are read from, but never out of proportion.
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 100_000 + 50 * len(raw)
    return True


def test_the_file_itself_is_sound(path, model):
    assert survives(path, model)


def test_every_truncation(path, model):
    assert not [n for n in range(len(model)) if survives(path, model[:n])]


def test_every_flipped_bit_of_the_header(path, model):
    header = len(model) - 256  # 36, 144 and 32 bytes, each padded to a multiple of 32
    for i in range(header * 8):
        raw = bytearray(model)
        raw[i // 8] ^= 1 << i % 8
        survives(path, bytes(raw))


def test_every_number_of_the_header_made_hostile(path, model):
    for at in range(0, len(model) - 256):
        number = random.Random(at).choice(NUMBERS)
        survives(path, model[:at] + struct.pack("<Q", number) + model[at + 8 :])


@settings(max_examples=300, deadline=NO_HANG)
@given(st.data())
def test_many_changes_at_once(path, model, data):
    raw = bytearray(model)
    for at, number in data.draw(
        st.lists(st.tuples(st.integers(0, len(raw) - 8), st.sampled_from(NUMBERS)), max_size=6)
    ):
        width, code = data.draw(st.sampled_from([(1, "<B"), (4, "<I"), (8, "<Q")]))
        raw[at : at + width] = struct.pack(code, number % 256**width)
    cut = data.draw(st.integers(0, len(raw)))
    survives(path, bytes(raw[:cut]) + data.draw(st.binary(max_size=40)) + bytes(raw[cut:]))


@settings(max_examples=300, deadline=NO_HANG)
@given(
    st.lists(st.binary(max_size=60), max_size=4), st.lists(st.binary(max_size=60), max_size=4), st.binary()
)
def test_arbitrary_headers(path, pairs, infos, data):
    survives(path, gguf(tuple(pairs), tuple(infos), data))


@settings(max_examples=100, deadline=NO_HANG)
@given(st.binary(max_size=200))
def test_arbitrary_bytes(path, raw):
    survives(path, raw)
