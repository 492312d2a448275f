"""Files that lie: one test for each check of the reader, which fails without it."""

import struct
import tracemalloc

import pytest

from ggrun.gguf import GGUF, ValueType
from tests.gguf.build import Q4_0, array, gguf, info, number, pair, put, refusal, string

HUGE = (2**40, 2**60, 2**63 - 1, 2**64 - 1)


def words(tmp_path, raw: bytes) -> str:
    """Refuse the file, quickly and without taking memory for what it promises; return why."""
    path = put(tmp_path, raw)
    tracemalloc.start()
    try:
        text = refusal(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 200_000 + 4 * len(raw)
    assert text.startswith(f"{path}: ")
    return text


def test_not_gguf(tmp_path):
    text = words(tmp_path, gguf(magic=b"PK\x03\x04"))
    assert "not a GGUF file (starts with b'PK\\x03\\x04')" in text
    assert "not a GGUF file (starts with b'GG')" in words(tmp_path, b"GG")


@pytest.mark.parametrize("version", [0, 1, 4, 0x00010000 + 3])
def test_other_versions(tmp_path, version):
    assert f"GGUF version {version}; ggrun reads versions 2 and 3" in words(tmp_path, gguf(version=version))


def test_big_endian(tmp_path):
    assert "big-endian" in words(tmp_path, gguf(version=0x03000000))
    assert "big-endian" in words(tmp_path, gguf(version=0x02000000))


@pytest.mark.parametrize("count", HUGE)
def test_counts_beyond_the_file(tmp_path, count):
    assert f"{count} tensors do not fit" in words(tmp_path, gguf(n_infos=count))
    assert f"{count} metadata pairs do not fit" in words(tmp_path, gguf(n_pairs=count))


def test_counts_just_beyond_the_file(tmp_path):
    # The smallest pair takes 14 bytes, the smallest tensor 33.
    assert "2 metadata pairs do not fit" in words(tmp_path, gguf(n_pairs=2, alignment=1) + bytes(27))
    assert "truncated" in words(tmp_path, gguf((number(b"k", 1),), n_pairs=3))
    smallest = gguf((pair(b"k", ValueType.UINT8, b"\1"),), alignment=1)
    assert GGUF(put(tmp_path, smallest)).metadata == {"k": 1}
    assert "2 tensors do not fit" in words(tmp_path, gguf(n_infos=2, alignment=1) + bytes(65 - 8))


@pytest.mark.parametrize("count", [*HUGE, 100])
def test_lengths_beyond_the_file(tmp_path, count):
    length = struct.pack("<Q", count)
    fits = f"{count} {{}} do not fit"
    assert fits.format("bytes of a metadata key") in words(tmp_path, gguf((length + b"key" + bytes(12),)))
    assert fits.format("bytes of a string") in words(
        tmp_path, gguf((pair(b"k", ValueType.STRING, length + b"text"),))
    )
    assert fits.format("bytes of a tensor name") in words(tmp_path, gguf((), (length + info()[8:],)))


@pytest.mark.parametrize("count", HUGE)
@pytest.mark.parametrize("kind", [ValueType.STRING, ValueType.UINT8, ValueType.BOOL, ValueType.FLOAT64])
def test_arrays_beyond_the_file(tmp_path, count, kind):
    raw = gguf((pair(b"k", ValueType.ARRAY, array(kind, count, b"")),))
    assert f"{count} {'strings' if kind is ValueType.STRING else 'numbers'} do not fit" in words(
        tmp_path, raw
    )


@pytest.mark.parametrize("count", [*HUGE, 100])
def test_a_string_of_an_array_beyond_the_file(tmp_path, count):
    texts = string(b"good") + struct.pack("<Q", count) + b"bad" + bytes(20)
    raw = gguf((pair(b"k", ValueType.ARRAY, array(ValueType.STRING, 2, texts)),))
    assert f"{count} bytes of a string do not fit" in words(tmp_path, raw)


def test_an_array_of_strings_that_the_file_cuts_off(tmp_path):
    texts = array(ValueType.STRING, 3, string(b"0123456789abcdef") + string(b""))
    assert "truncated: the header goes on" in words(
        tmp_path, gguf((pair(b"k", ValueType.ARRAY, texts),), alignment=1)
    )


def test_keys(tmp_path):
    assert "a metadata key of 0 bytes" in words(tmp_path, gguf((number(b"", 1),)))
    assert "a metadata key of 65536 bytes" in words(tmp_path, gguf((number(b"k" * 65536, 1),)))
    assert "'k\ufffd' is not valid UTF-8" in words(tmp_path, gguf((number(b"k\xff", 1),)))
    assert "the metadata key 'k' appears twice" in words(tmp_path, gguf((number(b"k", 1), number(b"k", 2))))
    assert GGUF(put(tmp_path, gguf((number(b"k" * 65535, 1),)))).metadata["k" * 65535] == 1


def test_a_message_does_not_repeat_an_absurd_key(tmp_path):
    key = b"k" * 60000
    assert "kkk…' appears twice" in words(tmp_path, gguf((number(key, 1), number(key, 2))))


def test_types_of_values(tmp_path):
    assert "'k' has the unknown type 13" in words(tmp_path, gguf((pair(b"k", 13, bytes(8)),)))
    raw = gguf((pair(b"k", ValueType.ARRAY, array(2**32 - 1, 1, bytes(8))),))
    assert "'k' has the unknown type 4294967295" in words(tmp_path, raw)


def test_arrays_of_arrays(tmp_path):
    nested = array(ValueType.ARRAY, 1, array(ValueType.UINT8, 1, b"\1"))
    assert "'k' is an array of arrays" in words(tmp_path, gguf((pair(b"k", ValueType.ARRAY, nested),)))


def test_bools(tmp_path):
    assert "'k' is a bool of 2" in words(tmp_path, gguf((pair(b"k", ValueType.BOOL, b"\2"),)))
    raw = gguf((pair(b"k", ValueType.ARRAY, array(ValueType.BOOL, 3, b"\0\1\xff")),))
    assert "'k' is a bool of 255" in words(tmp_path, raw)


@pytest.mark.parametrize("alignment", [0, 3, 48, 2**32 - 1])
def test_alignments(tmp_path, alignment):
    raw = gguf((number(b"general.alignment", alignment),), (info(),), bytes(64))
    assert f"general.alignment must be a power of two, not {alignment}" in words(tmp_path, raw)


@pytest.mark.parametrize(
    ("kind", "payload"), [(ValueType.STRING, string(b"3" * 999)), (ValueType.BOOL, b"\1")]
)
def test_alignments_that_are_not_numbers(tmp_path, kind, payload):
    raw = gguf((pair(b"general.alignment", kind, payload),), (info(),), bytes(64))
    assert "general.alignment must be a power of two" in words(tmp_path, raw)


def test_an_alignment_beyond_the_file(tmp_path):
    raw = gguf((number(b"general.alignment", 2**31),), (info(),), bytes(64))
    assert "the file has 0;" in words(tmp_path, raw)


def test_names_of_tensors(tmp_path):
    twice = (info(b"w"), info(b"w", offset=32))
    assert "the tensor name 'w' appears twice" in words(tmp_path, gguf((), twice, bytes(64)))
    assert "a tensor name of 0 bytes" in words(tmp_path, gguf((), (info(b""),), bytes(64)))
    assert "is not valid UTF-8" in words(tmp_path, gguf((), (info(b"\xff"),), bytes(64)))
    assert "\\n\\x1b" in words(tmp_path, gguf((), (info(b"\n\x1b", (0,)),)))


@pytest.mark.parametrize("n", [0, 5, 2**32 - 1])
def test_numbers_of_dimensions(tmp_path, n):
    raw = string(b"w") + struct.pack("<I", n) + bytes(100)
    assert f"tensor 'w' has {n} dimensions" in words(tmp_path, gguf((), (raw,)))


@pytest.mark.parametrize("dims", [(0,), (8, 0), (8, 1, 1, 0)])
def test_dimensions_of_zero(tmp_path, dims):
    assert "has a dimension of 0 in its shape" in words(tmp_path, gguf((), (info(dims=dims),), bytes(64)))


@pytest.mark.parametrize("dims", [(2**62,), (2**32, 2**32), (2**16,) * 4, (2**63, 2, 2**63, 2**63)])
def test_products_that_overflow_64_bits(tmp_path, dims):
    assert "bytes of tensor data, the file has 64" in words(tmp_path, gguf((), (info(dims=dims),), bytes(64)))


def test_rows_of_broken_blocks(tmp_path):
    text = words(tmp_path, gguf((), (info(dims=(48,), format=Q4_0),), bytes(64)))
    assert "tensor 'w' has a row of 48 elements, which is no multiple of Q4_0's 32" in text


@pytest.mark.parametrize("format", [4, 31, 38, 99, 2**32 - 1])
def test_formats(tmp_path, format):
    assert f"tensor 'w' has format {format}" in words(tmp_path, gguf((), (info(format=format),), bytes(64)))


@pytest.mark.parametrize("offset", [1, 16, 2**64 - 1])
def test_offsets_that_are_not_aligned(tmp_path, offset):
    assert f"'w' has offset {offset}, not a multiple" in words(
        tmp_path, gguf((), (info(offset=offset),), bytes(64))
    )


@pytest.mark.parametrize("offset", [64, 2**40, 2**64 - 32])
def test_offsets_beyond_the_file(tmp_path, offset):
    text = words(tmp_path, gguf((), (info(offset=offset),), bytes(64)))
    assert f"truncated: the header promises {offset + 32} bytes of tensor data, the file has 64" in text
    assert "download it again" in text


def test_the_last_byte_of_the_data_counts(tmp_path):
    assert "promises 32 bytes of tensor data, the file has 31" in words(
        tmp_path, gguf((), (info(),), bytes(31))
    )
    assert GGUF(put(tmp_path, gguf((), (info(),), bytes(32)))).tensors["w"].nbytes == 32


@pytest.mark.parametrize(("first", "second"), [(0, 0), (0, 32), (32, 0)])
def test_tensors_that_overlap(tmp_path, first, second):
    tensors = (info(b"a", (16,), offset=first), info(b"b", (16,), offset=second))
    text = words(tmp_path, gguf((), tensors, bytes(128)))
    assert "overlap" in text
    assert "'a'" in text
    assert "'b'" in text
