"""What a sound file reads as: values, shapes, views, and the life of the map behind them."""

import gc
import os
import struct

import numpy as np
import pytest

from ggrun.gguf import FORMATS, GGUF, GGUFError, Source, ValueType, write_gguf
from tests.gguf.build import array, gguf, info, number, pair, put, refusal, string


@pytest.fixture
def model(tmp_path):
    metadata = {
        "general.architecture": "llama",
        "llama.block_count": 2,
        "llama.rope.freq_base": 10000.0,
        "llama.scale": 3,
        "llama.causal": True,
        "tokenizer.ggml.tokens": ["a", "b"],
        "tokenizer.ggml.scores": [0.5, -1.0],
    }
    tensors = [
        Source("a", (32, 3, 2), FORMATS["Q4_0"], bytes(range(108))),
        Source("b", (5,), FORMATS["F32"], np.arange(5, dtype=np.float32)),
    ]
    return write_gguf(tmp_path / "m.gguf", metadata, tensors)[0]


def test_a_tensor_is_its_shape_its_format_and_exactly_its_bytes(model):
    a, b = GGUF(model).tensors.values()
    assert (a.name, a.shape, a.format, a.rows, a.row_bytes, a.nbytes) == (
        "a",
        (32, 3, 2),
        FORMATS["Q4_0"],
        6,
        18,
        108,
    )
    assert a.data.tobytes() == bytes(range(108))
    assert (b.shape, b.rows, b.row_bytes) == ((5,), 1, 20)
    assert b.data.view(np.float32).tolist() == [0, 1, 2, 3, 4]


def test_a_tensor_is_a_read_only_view_of_the_map(model):
    data = GGUF(model).tensors["a"].data
    assert (data.dtype, data.ndim) == (np.uint8, 1)
    assert not data.flags.writeable
    assert not data.flags.owndata


def test_views_outlive_the_model_that_they_came_from(model):
    with GGUF.open(model) as opened:
        data = opened.tensors["a"].data
    assert opened.tensors == {}
    del opened
    gc.collect()
    assert data.tobytes() == bytes(range(108))


def test_a_closed_model_that_nobody_looks_at_is_unmapped(model):
    def mapped():
        with open("/proc/self/maps") as maps:
            return str(model) in maps.read()

    opened = GGUF(model)
    view = opened.tensors["a"].data
    opened.close()
    assert mapped()
    del view
    assert not mapped()


def test_the_getters_give_the_type_that_was_asked_for(model):
    opened = GGUF(str(model))
    assert opened.path == model
    assert opened.paths == (model,)
    assert opened.version == 3
    assert opened.architecture == "llama"
    assert opened.int_("llama.block_count") == 2
    assert opened.float_("llama.rope.freq_base") == 10000.0
    assert opened.bool_("llama.causal") is True
    assert opened.strings("tokenizer.ggml.tokens") == ["a", "b"]
    assert opened.array("tokenizer.ggml.scores").tolist() == [0.5, -1.0]
    assert opened.get("llama.block_count") == 2
    assert opened.get("nothing") is None


def test_a_whole_number_is_taken_as_a_float(model):
    value = GGUF(model).float_("llama.scale")
    assert (type(value), value) == (float, 3.0)


def test_the_getters_take_a_default_for_a_key_that_is_not_there(model):
    opened = GGUF(model)
    assert opened.int_("no", 1) == 1
    assert opened.float_("no", 0.0) == 0.0
    assert opened.bool_("no", False) is False
    assert opened.str_("no", "") == ""
    assert opened.strings("no", []) == []
    assert opened.array("no", np.zeros(0)).size == 0
    assert opened.get("no", 7) == 7


@pytest.mark.parametrize(
    ("getter", "key", "words"),
    [
        ("int_", "no", "'no' is missing"),
        ("int_", "llama.causal", "is a bool, not a whole number"),
        ("int_", "llama.rope.freq_base", "is a number, not a whole number"),
        ("float_", "llama.causal", "is a bool, not a number"),
        ("float_", "general.architecture", "is a string, not a number"),
        ("bool_", "llama.block_count", "is a whole number, not a bool"),
        ("str_", "tokenizer.ggml.tokens", "is a list of strings, not a string"),
        ("strings", "tokenizer.ggml.scores", "is an array of numbers, not a list of strings"),
        ("array", "tokenizer.ggml.tokens", "is a list of strings, not an array of numbers"),
    ],
)
def test_the_getters_say_what_is_wrong(model, getter, key, words):
    with pytest.raises(GGUFError, match=words) as caught:
        getattr(GGUF(model), getter)(key)
    assert str(caught.value).startswith(f"{model}: ")


def test_every_type_of_value(tmp_path):
    cases = {
        ValueType.UINT8: ("<B", 200),
        ValueType.INT8: ("<b", -100),
        ValueType.UINT16: ("<H", 60000),
        ValueType.INT16: ("<h", -30000),
        ValueType.UINT32: ("<I", 4000000000),
        ValueType.INT32: ("<i", -2000000000),
        ValueType.FLOAT32: ("<f", 0.5),
        ValueType.BOOL: ("<?", True),
        ValueType.UINT64: ("<Q", 2**64 - 1),
        ValueType.INT64: ("<q", -(2**63)),
        ValueType.FLOAT64: ("<d", 0.1),
    }
    pairs = []
    for kind, (code, value) in cases.items():
        raw = struct.pack(code, value)
        pairs += [pair(kind.name.encode(), kind, raw)]
        pairs += [pair(kind.name.encode() + b"[]", ValueType.ARRAY, array(kind, 2, raw * 2))]
    metadata = GGUF(put(tmp_path, gguf(tuple(pairs)))).metadata
    for kind, (_, value) in cases.items():
        assert (type(metadata[kind.name]), metadata[kind.name]) == (type(value), value)
        assert metadata[f"{kind.name}[]"].tolist() == [value, value]
        assert metadata[f"{kind.name}[]"].flags.aligned


def test_empty_arrays_and_strings(tmp_path):
    empty = [pair(b"n", ValueType.ARRAY, array(ValueType.BOOL, 0, b""))]
    empty += [
        pair(b"s", ValueType.ARRAY, array(ValueType.STRING, 0, b"")),
        pair(b"t", ValueType.STRING, string(b"")),
    ]
    metadata = GGUF(put(tmp_path, gguf(tuple(empty)))).metadata
    assert metadata["n"].size == 0
    assert metadata["s"] == []
    assert metadata["t"] == ""


def test_bytes_that_are_not_utf8_survive_in_strings(tmp_path):
    odd = [b"\xff", "▁é".encode(), b"\xe2\x96", b"\xed\xa0\x80", b"ok"]
    tokens = pair(b"t", ValueType.ARRAY, array(ValueType.STRING, len(odd), b"".join(map(string, odd))))
    metadata = GGUF(put(tmp_path, gguf((tokens, pair(b"s", ValueType.STRING, string(b"\x80")))))).metadata
    assert [text.encode("utf-8", "surrogateescape") for text in metadata["t"]] == odd
    assert metadata["t"][1] == "▁é"
    assert metadata["s"] == "\udc80"


def test_string_arrays_of_every_length_around_the_window(tmp_path, monkeypatch):
    texts = [bytes([65 + i]) * (i % 23) for i in range(60)] + [b"long" * 50, b"", b"end"]
    tokens = pair(b"t", ValueType.ARRAY, array(ValueType.STRING, len(texts), b"".join(map(string, texts))))
    path = put(tmp_path, gguf((tokens, number(b"after", 7))))
    for window in (1, 8, 9, 31, 64, 1000):
        monkeypatch.setattr("ggrun.gguf.parse._WINDOW", window)
        metadata = GGUF(path).metadata
        assert [text.encode() for text in metadata["t"]] == texts
        assert metadata["after"] == 7


def test_version_2_reads_as_version_3(tmp_path):
    opened = GGUF(put(tmp_path, gguf((number(b"k", 7),), (info(),), bytes(32), version=2)))
    assert (opened.version, opened.metadata, opened.tensors["w"].shape) == (2, {"k": 7}, (8,))


def test_another_alignment_moves_the_data(tmp_path):
    tensors = (info(b"a"), info(b"b", offset=256))
    raw = gguf(
        (number(b"general.alignment", 256),), tensors, b"a" * 32 + bytes(224) + b"b" * 32, alignment=256
    )
    opened = GGUF(put(tmp_path, raw))
    assert [t.data.tobytes() for t in opened.tensors.values()] == [b"a" * 32, b"b" * 32]


def test_tensors_may_stand_in_any_order_and_leave_gaps(tmp_path):
    raw = gguf((), (info(b"a", offset=64), info(b"b")), b"b" * 32 + bytes(32) + b"a" * 32)
    opened = GGUF(put(tmp_path, raw))
    assert list(opened.tensors) == ["a", "b"]
    assert opened.tensors["a"].data.tobytes() == b"a" * 32


def test_a_file_that_is_not_there(tmp_path):
    assert refusal(tmp_path / "no.gguf") == f"{tmp_path}/no.gguf: cannot be opened: No such file or directory"


def test_a_directory(tmp_path):
    assert "a directory, where a GGUF file is needed" in refusal(tmp_path)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in refusal(tmp_path / "pipe")


def test_no_permission(tmp_path, monkeypatch):
    path = put(tmp_path, gguf())
    path.chmod(0)
    if os.access(path, os.R_OK):  # root may read anything

        def denied(*_):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("builtins.open", denied)
    assert refusal(path).endswith("cannot be opened: Permission denied")


def test_an_empty_file(tmp_path):
    assert "not a GGUF file (it is empty)" in refusal(put(tmp_path, b""))


def test_a_path_that_no_file_can_have():
    with pytest.raises(GGUFError, match="embedded null"):
        GGUF("a\0b")


def test_names_that_would_break_a_line_or_a_terminal_are_escaped(tmp_path):
    assert "\\n\\x1b[31m" in refusal(tmp_path / "a\n\x1b[31m.gguf")
    assert "\\udcff" in refusal(tmp_path / "\udcff.gguf")
