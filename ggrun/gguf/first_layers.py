"""A model with fewer layers than it has, to try things with."""

from collections.abc import Sized
from typing import Any

from ggrun.gguf.reader import GGUF


class FirstLayers(GGUF):
    """The first layers of an open model between its own embedding and output; closing it closes nothing."""

    def __init__(self, model: GGUF, layers: int) -> None:
        there = f"{model.architecture}.block_count"
        all_of_them = model.int_(there)
        layers = min(layers, all_of_them)

        def cut(value: Any) -> Any:
            """Of what there is one a layer, as many as there are layers."""
            one_each = isinstance(value, Sized) and not isinstance(value, str) and len(value) == all_of_them
            return value[:layers] if one_each else value

        metadata = {
            key: cut(value) if key.startswith(f"{model.architecture}.") else value
            for key, value in model.metadata.items()
        }
        left_out = tuple(f"blk.{i}." for i in range(layers, all_of_them))
        tensors = {name: t for name, t in model.tensors.items() if not name.startswith(left_out)}
        super(GGUF, self).__init__(model.path, {**metadata, there: layers}, tensors)
        self.paths, self.version = model.paths, model.version
