"""The table of formats and of value types against gguf-py's."""

import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.constants import GGUFValueType as Theirs

from ggrun.gguf import FORMATS, FORMATS_BY_ID, ValueType
from ggrun.gguf.types import DTYPES, aligned, checked_alignment, tensor_nbytes


def test_the_table_of_formats_is_ggufs():
    theirs = {kind.name: (int(kind), *GGML_QUANT_SIZES[kind]) for kind in GGMLQuantizationType}
    ours = {f.name: (f.id, f.block, f.size) for f in FORMATS.values()}
    # A newer gguf-py may know formats that we do not: then it is time to add them.
    assert ours == theirs


def test_formats_are_found_by_name_and_by_id():
    assert FORMATS["Q4_K"] is FORMATS_BY_ID[12]
    assert len(FORMATS) == len(FORMATS_BY_ID)


def test_value_types_are_ggufs():
    assert {t.name: int(t) for t in ValueType} == {t.name: int(t) for t in Theirs}


def test_every_value_type_of_fixed_size_has_a_little_endian_dtype():
    assert set(DTYPES) == set(ValueType) - {ValueType.STRING, ValueType.ARRAY}
    assert all(dtype.newbyteorder("<") == dtype for dtype in DTYPES.values())


def test_bytes_of_a_row():
    assert FORMATS["Q4_K"].nbytes(512) == 288
    with pytest.raises(ValueError, match="a row of 100 elements, which is no multiple of Q4_K's 256"):
        FORMATS["Q4_K"].nbytes(100)


def test_bytes_of_a_tensor_are_counted_by_rows():
    assert tensor_nbytes((32, 3, 2), FORMATS["Q4_0"]) == 6 * 18
    with pytest.raises(ValueError, match="multiple"):
        tensor_nbytes((16, 2), FORMATS["Q4_0"])  # 32 elements in all, but no whole row


@pytest.mark.parametrize(
    ("shape", "words"), [((), "0 dimensions"), ((1,) * 5, "5 dim"), ((4, 0), "dimension of 0")]
)
def test_impossible_shapes(shape, words):
    with pytest.raises(ValueError, match=words):
        tensor_nbytes(shape, FORMATS["F32"])


def test_aligned():
    assert [aligned(n, 32) for n in (0, 1, 32, 33)] == [0, 32, 32, 64]


@pytest.mark.parametrize("value", [0, -32, 3, 48, True, 32.0, "32"])
def test_alignments_that_are_not(value):
    with pytest.raises(ValueError, match="power of two"):
        checked_alignment(value)
