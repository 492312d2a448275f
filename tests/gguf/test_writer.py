"""What is written reads back, here and in gguf-py; a failure leaves nothing behind."""

import errno
import os
import resource
import tracemalloc

import numpy as np
import pytest
from gguf import GGUFReader
from hypothesis import given, settings
from hypothesis import strategies as st

from ggrun.gguf import FORMATS, GGUF, GGUFError, Source, write_gguf

F32 = FORMATS["F32"]
BYTES = st.binary(max_size=12).map(lambda raw: raw.decode("utf-8", "surrogateescape"))
NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
FLOATS = st.floats(width=32, allow_nan=False)
INTS = st.integers(-(2**63), 2**64 - 1)
SMALL = st.integers(-(2**63), 2**63 - 1)
VALUES = st.one_of(
    st.booleans(),
    INTS,
    FLOATS,
    st.floats(allow_nan=False, allow_infinity=False),
    BYTES,
    st.lists(BYTES, max_size=5),
    st.lists(SMALL, min_size=1, max_size=5),
    st.lists(FLOATS, min_size=1, max_size=5),
    st.lists(st.booleans(), min_size=1, max_size=5),
)


@st.composite
def sources(draw):
    format = FORMATS[draw(st.sampled_from(sorted(FORMATS)))]
    shape = (draw(st.integers(1, 3)) * format.block, *draw(st.lists(st.integers(1, 3), max_size=3)))
    size = format.nbytes(shape[0]) * int(np.prod(shape[1:]))
    return (
        shape,
        format,
        draw(st.binary(min_size=size, max_size=size) if size < 64 else st.just(os.urandom(size))),
    )


def plain(value):
    return value.tolist() if isinstance(value, np.ndarray) else value


@settings(max_examples=100)
@given(
    st.dictionaries(
        NAMES.filter(lambda k: not k.startswith(("split.", "general.alignment"))), VALUES, max_size=5
    ),
    st.dictionaries(NAMES, sources(), max_size=4),
    st.sampled_from([None, 1, 8, 64]),
    st.sampled_from([None, 1, 2]),
)
def test_round_trip(tmp_path_factory, metadata, tensors, alignment, max_tensors):
    path = tmp_path_factory.mktemp("round") / "m.gguf"
    metadata |= {"general.alignment": alignment} if alignment else {}
    written = [Source(name, *rest) for name, rest in tensors.items()]
    opened = GGUF(write_gguf(path, metadata, written, max_tensors=max_tensors)[-1])
    read = {key: plain(value) for key, value in opened.metadata.items() if not key.startswith("split.")}
    assert {k: (type(v), v) for k, v in read.items()} == {
        k: (type(v), _stored(v)) for k, v in metadata.items()
    }
    assert [(t.name, t.shape, t.format, t.data.tobytes()) for t in opened.tensors.values()] == [
        (s.name, s.shape, s.format, s.data) for s in written
    ]


def _stored(value):
    # A float that is finite and within the range of 32 bits is stored in 32 bits, as llama.cpp expects.
    if isinstance(value, float) and abs(value) <= float(np.finfo(np.float32).max):
        return float(np.float32(value))
    return value


def test_gguf_py_reads_what_we_write(tmp_path):
    metadata = {
        "general.architecture": "llama",
        "k.int": 7,
        "k.negative": -7,
        "k.float": 0.5,
        "k.bool": True,
        "k.strings": ["a", "é"],
        "k.ints": [1, -2],
        "k.u8": np.uint8(3),
        "k.u16s": np.array([1, 2], ">u2"),
    }
    weights = np.arange(12, dtype=np.float32).reshape(3, 4)
    path = write_gguf(tmp_path / "m.gguf", metadata, [Source("w", (4, 3), F32, weights)])[0]
    theirs = GGUFReader(path)
    contents = {key: field.contents() for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    assert contents == metadata | {"k.u16s": [1, 2]}
    assert [t.name for field in theirs.fields.values() if field.name == "k.u16s" for t in field.types] == [
        "ARRAY",
        "UINT16",
    ]
    types = {key: field.types[-1].name for key, field in theirs.fields.items()}
    expected = {
        "k.int": "UINT32",
        "k.negative": "INT32",
        "k.float": "FLOAT32",
        "k.ints": "INT32",
        "k.u8": "UINT8",
    }
    assert {key: types[key] for key in expected} == expected
    assert np.array_equal(theirs.tensors[0].data, weights)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (2**31, "UINT32"),
        (2**32, "INT64"),
        (2**63, "UINT64"),
        (-1, "INT32"),
        (-(2**31) - 1, "INT64"),
        (1e300, "FLOAT64"),
        ([2**31], "UINT32"),
        ([2**31, -1], "INT64"),
        ([2**31 - 1], "INT32"),
        ([0.5, 1e300], "FLOAT64"),
        (float("inf"), "FLOAT32"),
        (0.1, "FLOAT32"),
    ],
)
def test_numbers_get_the_width_that_they_need(tmp_path, value, kind):
    path = write_gguf(tmp_path / "m.gguf", {"k": value})[0]
    assert GGUFReader(path).fields["k"].types[-1].name == kind


def test_a_tensor_streams_from_a_function_without_being_held(tmp_path):
    chunk = np.zeros(1 << 16, np.uint8)
    n = 256
    source = Source("w", (n << 14,), F32, lambda: (chunk for _ in range(n)))
    tracemalloc.start()
    path = write_gguf(tmp_path / "m.gguf", {}, [source])[0]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20
    assert GGUF(path).tensors["w"].nbytes == n << 16


def test_data_is_aligned_and_the_last_tensor_padded(tmp_path):
    path = write_gguf(
        tmp_path / "m.gguf", {}, [Source("a", (1,), F32, bytes(4)), Source("b", (1,), F32, bytes(4))]
    )[0]
    assert path.stat().st_size % 32 == 0
    assert write_gguf(tmp_path / "n.gguf", {})[0].stat().st_size % 32 == 0


def refused(folder, metadata=(), tensors=(), name="m.gguf", **options):
    """Fail to write; return why, after checking that nothing is left."""
    before = {p: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(GGUFError) as caught:
        write_gguf(folder / name, dict(metadata), tensors, **options)
    assert {p: p.read_bytes() for p in folder.iterdir()} == before
    assert str(caught.value).startswith(f"{folder / name}"[:-5])
    assert str(caught.value).isprintable()
    return str(caught.value)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "'k' is neither"),
        ([1, "a"], "'k' is neither"),
        (np.zeros((2, 2)), "'k' is neither"),
        ({}, "'k' is neither"),
        (2**64, "'k' is neither"),
        ([[1], [1, 2]], "inhomogeneous"),
        ("\ud800", "can't encode"),
        (b"x", "'k' is neither"),
    ],
)
def test_values_that_gguf_cannot_hold(tmp_path, value, words):
    assert words in refused(tmp_path, {"k": value})


def test_names_that_gguf_cannot_hold(tmp_path):
    assert "a name of 0 bytes" in refused(tmp_path, {"": 1})
    assert "a name of 65536 bytes" in refused(tmp_path, {"k" * 65536: 1})
    assert "a name of 0 bytes" in refused(tmp_path, {}, [Source("", (1,), F32, bytes(4))])
    assert "two tensors have the name 'w'" in refused(tmp_path, {}, [Source("w", (1,), F32, bytes(4))] * 2)
    assert "power of two" in refused(tmp_path, {"general.alignment": 3})


def test_shapes_that_gguf_cannot_hold(tmp_path):
    assert "multiple of Q4_0's 32" in refused(tmp_path, {}, [Source("w", (33,), FORMATS["Q4_0"], b"")])
    assert "dimension of -1" in refused(tmp_path, {}, [Source("w", (-1,), F32, b"")])
    assert "cannot be written" in refused(tmp_path, {}, [Source("w", (2**64,), F32, b"")])


def test_more_shards_than_gguf_can_count(tmp_path):
    tensors = [Source(str(i), (1,), F32, b"") for i in range(65536)]
    assert "out of bounds for uint16" in refused(tmp_path, {}, tensors, max_tensors=1)


@pytest.mark.parametrize("data", [bytes(31), lambda: [bytes(30), b"1"], lambda: []])
def test_too_few_bytes(tmp_path, data):
    assert "fewer than its 32 bytes" in refused(tmp_path, {}, [Source("w", (8,), F32, data)])


def test_too_many_bytes(tmp_path):
    def endless():
        while True:
            yield bytes(30)

    assert "has more than its 32 bytes" in refused(tmp_path, {}, [Source("w", (8,), F32, bytes(33))])
    assert "has more than its 32 bytes" in refused(tmp_path, {}, [Source("w", (8,), F32, endless)])


def test_a_failure_leaves_the_old_file_alone(tmp_path):
    write_gguf(tmp_path / "m.gguf", {"k": 1})
    refused(tmp_path, {}, [Source("w", (8,), F32, b"")])
    assert GGUF(tmp_path / "m.gguf").metadata == {"k": 1}


def test_a_failure_in_the_last_shard_leaves_no_shard(tmp_path):
    good, bad = Source("a", (8,), F32, bytes(32)), Source("b", (8,), F32, b"")
    refused(tmp_path, {}, [good, bad], max_tensors=1)


def test_a_failure_to_rename_the_last_shard_leaves_no_shard(tmp_path):
    (tmp_path / "m-00002-of-00002.gguf" / "in the way").mkdir(parents=True)
    with pytest.raises(GGUFError, match="cannot be written: "):
        write_gguf(tmp_path / "m.gguf", {}, [Source(n, (8,), F32, bytes(32)) for n in "ab"], max_tensors=1)
    assert [p.name for p in tmp_path.iterdir()] == ["m-00002-of-00002.gguf"]


def test_an_exception_of_the_caller_passes_and_leaves_nothing(tmp_path):
    def interrupted():
        yield bytes(16)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_gguf(tmp_path / "m.gguf", {}, [Source("w", (8,), F32, interrupted)])
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    try:
        text = refused(tmp_path, {}, [Source("w", (1 << 16,), F32, bytes(1 << 18))])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert text.endswith("cannot be written: File too large")


def test_a_disk_that_fills_up_at_the_very_end(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert refused(tmp_path, {"k": 1}).endswith("cannot be written: No space left on device")


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(GGUFError, match="No such file or directory"):
        write_gguf(tmp_path / "no" / "m.gguf", {})


def test_a_tensor_of_another_file_is_copied_as_it_is(tmp_path):
    first = GGUF(write_gguf(tmp_path / "a.gguf", {}, [Source("w", (8,), F32, bytes(range(32)))])[0])
    write_gguf(tmp_path / "a.gguf", {}, list(first.tensors.values()))  # over the very file that is mapped
    assert GGUF(tmp_path / "a.gguf").tensors["w"].data.tobytes() == bytes(range(32))
    assert first.tensors["w"].data.tobytes() == bytes(range(32))
