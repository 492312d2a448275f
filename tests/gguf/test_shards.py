"""Models in several files: any one opens all, and files that do not belong together are refused."""

import numpy as np
import pytest

from ggrun.gguf import FORMATS, GGUF, GGUFError, Source, write_gguf
from tests.gguf.build import refusal

F32 = FORMATS["F32"]


def weights(n=5):
    return [Source(f"w{i}", (8,), F32, bytes([i]) * 32) for i in range(n)]


def write(folder, metadata, tensors=(), number=0, count=1, name="m"):
    """Write one file by hand that claims to be shard `number` of `count`."""
    path = write_gguf(folder / "part.gguf", {}, tensors)[0]
    split = {"split.no": number, "split.count": count} | metadata
    # The writer leaves split.* keys out on purpose, so they go in under names of the same length.
    path = write_gguf(path, {f"tlips.{k[6:]}": v for k, v in split.items()}, tensors)[0]
    raw = path.read_bytes().replace(b"tlips.", b"split.")
    path.unlink()
    shard = folder / f"{name}-{number + 1:05d}-of-{count:05d}.gguf"
    shard.write_bytes(raw)
    return shard


@pytest.fixture
def shards(tmp_path):
    return write_gguf(
        tmp_path / "m.gguf", {"general.architecture": "llama", "k": [1, 2]}, weights(), max_tensors=2
    )


def test_names_and_keys_are_gguf_splits(shards):
    assert [p.name for p in shards] == [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    metadata = GGUF(shards[2]).metadata
    assert metadata["split.no"] == 0
    assert metadata["split.count"] == 3
    assert metadata["split.tensors.count"] == 5


@pytest.mark.parametrize("given", [0, 1, 2])
def test_any_one_shard_opens_all(shards, given):
    opened = GGUF(shards[given])
    assert opened.path == shards[given]
    assert opened.paths == tuple(shards)
    assert opened.architecture == "llama"
    assert opened.metadata["k"].tolist() == [1, 2]
    assert {name: t.data.tobytes() for name, t in opened.tensors.items()} == {
        s.name: s.data for s in weights()
    }
    assert list(opened.tensors) == [s.name for s in weights()]


def test_shards_in_a_folder_of_an_odd_name(tmp_path):
    folder = tmp_path / "a\nb"
    folder.mkdir()
    paths = write_gguf(folder / "m.gguf", {}, weights(2), max_tensors=1)
    assert len(GGUF(paths[1]).tensors) == 2


@pytest.mark.parametrize("given", [0, 1])
def test_a_missing_shard_is_named(shards, given):
    shards[2].unlink()
    assert refusal(shards[given]) == f"{shards[2]}: shard 3 of 3 is missing: download it into the same folder"


def test_a_renamed_shard(shards):
    other = shards[1].rename(shards[1].with_name("other.gguf"))
    assert "this is shard 2 of 3, but is not called NAME-00002-of-00003.gguf" in refusal(other)


def test_a_shard_under_another_shards_name(shards):
    shards[2].write_bytes(shards[1].read_bytes())
    assert "this is shard 2 of 3, but is not called" in refusal(shards[2])
    text = refusal(shards[0])
    assert text.startswith(f"{shards[2]}: says that it is shard 2 of 3, where shard 3 of 3 is needed")


def test_a_shard_of_a_model_split_otherwise(tmp_path):
    first = write(tmp_path, {}, weights(1), 0, 2)
    write(tmp_path, {"split.count": 3}, weights(1), 1, 2)
    assert "says that it is shard 2 of 3, where shard 2 of 2 is needed" in refusal(first)


def test_a_shard_that_is_a_whole_model(tmp_path):
    first = write(tmp_path, {}, weights(1), 0, 2)
    write(tmp_path, {"split.count": 1}, weights(1), 1, 2)
    assert "says that it is shard 1 of 1" in refusal(first)


def test_a_damaged_shard_is_named(shards):
    shards[1].write_bytes(shards[1].read_bytes()[:-40])
    text = refusal(shards[0])
    assert text.startswith(f"{shards[1]}: truncated")


def test_a_tensor_in_two_shards(tmp_path):
    first = write(tmp_path, {}, weights(1), 0, 2)
    second = write(tmp_path, {}, weights(1), 1, 2)
    assert refusal(first) == f"{second}: tensor 'w0' is in an earlier shard too"


def test_a_wrong_number_of_tensors(tmp_path):
    first = write(tmp_path, {"split.tensors.count": 4}, weights(3), 0, 2)
    write(tmp_path, {}, [], 1, 2)
    assert "promises 4 tensors, all shards together have 3" in refusal(first)


def test_a_model_that_does_not_count_its_tensors(tmp_path):
    write(tmp_path, {}, weights(3), 0, 2)
    assert len(GGUF(write(tmp_path, {}, [], 1, 2)).tensors) == 3


@pytest.mark.parametrize("count", [0, 1])
def test_one_shard_is_a_whole_model_whatever_its_name(tmp_path, count):
    path = write(tmp_path, {"split.count": count}, weights()).rename(tmp_path / "any.gguf")
    assert GGUF(path).paths == (path,)


@pytest.mark.parametrize("number", [-1, 2, 2**40])
def test_an_impossible_number(tmp_path, number):
    path = write(tmp_path, {"split.no": number}, weights(), 1, 2)
    assert f"damaged: split.no is {number} of 2" in refusal(path)


def test_impossible_counts(tmp_path):
    path = write(tmp_path, {"split.count": 2**60}, weights())
    assert "is not called" in refusal(path)
    assert "'split.count' is a string" in refusal(write(tmp_path, {"split.count": "2"}, weights()))
    assert "'split.no' is a number" in refusal(write(tmp_path, {"split.no": 0.0}, weights(), 0, 2))
    assert "'split.tensors.count' is an array" in refusal(_with_empty_second(tmp_path))


def _with_empty_second(folder):
    write(folder, {}, [], 1, 2)
    return write(folder, {"split.tensors.count": [1]}, weights(), 0, 2)


def test_shards_by_size(tmp_path):
    paths = write_gguf(
        tmp_path / "m.gguf", {}, [*weights(3), Source("big", (64,), F32, bytes(256))], max_bytes=64
    )
    raw = [GGUF(p).tensors for p in paths]
    assert len(paths) == 3
    assert all(len(tensors) == 4 for tensors in raw)
    assert len(write_gguf(tmp_path / "five.gguf", {}, weights(5), max_bytes=64)) == 3
    assert write_gguf(tmp_path / "n.gguf", {}, weights(2), max_bytes=64) == [tmp_path / "n.gguf"]


def test_shards_keep_the_alignment_in_each_file(tmp_path):
    metadata = {"general.alignment": np.uint32(1024)}
    paths = write_gguf(tmp_path / "m.gguf", metadata, weights(), max_tensors=2)
    assert {t.data.tobytes() for t in GGUF(paths[0]).tensors.values()} == {s.data for s in weights()}
    assert all(p.stat().st_size % 1024 == 0 for p in paths)


def test_a_merged_model_is_not_a_shard_any_more(shards, tmp_path):
    opened = GGUF(shards[0])
    merged = GGUF(write_gguf(tmp_path / "one.gguf", opened.metadata, list(opened.tensors.values()))[0])
    assert not [key for key in merged.metadata if key.startswith("split.")]
    assert len(merged.tensors) == 5


def test_a_tensor_of_the_same_name_in_a_later_shard_is_not_written(tmp_path):
    with pytest.raises(GGUFError, match="two tensors have the name 'w0'"):
        write_gguf(tmp_path / "m.gguf", {}, weights(1) * 2, max_tensors=1)
    assert list(tmp_path.iterdir()) == []
