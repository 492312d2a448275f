"""All files of a model mapped: one, or every shard when any one is given, checked to belong together."""

import os
import re
from collections.abc import Callable, Mapping
from typing import TypeVar

from ggrun.gguf.errors import GGUFError, shown
from ggrun.gguf.mapped import Tensor, map_file, read_infos
from ggrun.gguf.parse import Header, TensorInfo
from ggrun.gguf.types import Value
from ggrun.gguf.values import take

SPLIT_NO, SPLIT_COUNT, SPLIT_TENSORS = "split.no", "split.count", "split.tensors.count"
T = TypeVar("T", Tensor, TensorInfo)
Reader = Callable[[str], tuple[Header, list[T]]]
_NAME = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)


def shard_name(stem: str, number: int, count: int) -> str:
    """Return the path of shard `number` (from 0) of `count`, as llama.cpp's gguf-split names it (from 1)."""
    return f"{stem}-{number + 1:05d}-of-{count:05d}.gguf"


def map_model(path: str) -> tuple[list[str], Header, dict[str, Tensor]]:
    """Map the model that the file at `path` is, or is a shard of; GGUFError when any of its files is wrong.

    Returns the paths of its files, the header of the first, and the tensors of all by name, in order.
    """
    return _all_shards(path, map_file)


def outline_model(path: str) -> tuple[list[str], Header, dict[str, TensorInfo]]:
    """The same from the headers alone: of no tensor need the bytes be there."""
    return _all_shards(path, read_infos)


def _all_shards(path: str, read: Reader[T]) -> tuple[list[str], Header, dict[str, T]]:
    header, tensors = read(path)
    number, count = _position(header.metadata, path)
    if count == 1:
        return [path], header, {tensor.name: tensor for tensor in tensors}
    paths = _siblings(path, number, count)
    shards = [(header, tensors) if i == number else _shard(p, i, count, read) for i, p in enumerate(paths)]
    first = shards[0][0]
    return paths, first, _merged(first.metadata, [part for _, part in shards], paths)


def _position(metadata: Mapping[str, Value], path: str) -> tuple[int, int]:
    count = take(metadata, SPLIT_COUNT, int, 1, path)
    if count <= 1:  # gguf-split writes 0 into a file that it has merged
        return 0, 1
    number = take(metadata, SPLIT_NO, int, None, path)
    if not 0 <= number < count:
        raise GGUFError(f"{path}: damaged: {SPLIT_NO} is {number} of {count}")
    return number, count


def _siblings(path: str, number: int, count: int) -> list[str]:
    match = _NAME.fullmatch(path)
    if match is None or shard_name(match[1], number, count) != path:
        name = shard_name("NAME", number, count)
        raise GGUFError(
            f"{path}: this is shard {number + 1} of {count}, but is not called {name}: rename it back"
        )
    paths = [shard_name(match[1], i, count) for i in range(count)]
    for i, sibling in enumerate(paths):
        if not os.path.exists(sibling):
            raise GGUFError(
                f"{sibling}: shard {i + 1} of {count} is missing: download it into the same folder"
            )
    return paths


def _shard(path: str, number: int, count: int, read: Reader[T]) -> tuple[Header, list[T]]:
    header, tensors = read(path)
    if (found := _position(header.metadata, path)) != (number, count):
        is_, wanted = (f"shard {n + 1} of {c}" for n, c in (found, (number, count)))
        raise GGUFError(
            f"{path}: says that it is {is_}, where {wanted} is needed: the files do not belong together"
        )
    return header, tensors


def _merged(metadata: Mapping[str, Value], shards: list[list[T]], paths: list[str]) -> dict[str, T]:
    merged: dict[str, T] = {}
    for path, tensors in zip(paths, shards, strict=True):
        for tensor in tensors:
            if tensor.name in merged:
                raise GGUFError(f"{path}: tensor {shown(tensor.name)} is in an earlier shard too")
            merged[tensor.name] = tensor
    promised = take(metadata, SPLIT_TENSORS, int, len(merged), paths[0])
    if promised != len(merged):
        problem = f"promises {promised} tensors, all shards together have {len(merged)}"
        raise GGUFError(f"{paths[0]}: {problem}: the files do not belong together")
    return merged
