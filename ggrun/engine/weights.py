"""A member's weights: named tensors, checked, cut to the member's share, given to its device."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ggrun.arch import find
from ggrun.devices.base import Device, Memory, Slot, Weight
from ggrun.devices.streams import Work
from ggrun.gguf import GGUF, GGUFError, Tensor
from ggrun.plan import Range

# What llama.cpp loads for these architectures and does not use for the logits either.
_IGNORABLE = re.compile(r".*\.input_scale|cls\.output\.weight")
_FFN_SCALE = re.compile(r"blk\.\d+\.ffn_(gate|up|down)\.scale")
_LAYER_ROPE = re.compile(r"blk\.\d+\.rope_freqs\.weight")


class Model(Protocol):
    """What weights are taken from: a GGUF, or the tensors of one that came to another machine."""

    @property
    def path(self) -> Path:
        """The file's name, for errors."""

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Those that there are, by name."""


class Weights:
    """The tensors of a model, as one device takes them. Errors are GGUFErrors that name the tensor.

    `used` has the names of all tensors that were taken. What is taken again is on the device once: the rows
    of an embedding that is the output matrix too.

    slot    where matrices lie, from its begin on, when they were loaded; None: each has memory of its own
    """

    def __init__(self, model: Model, device: Device, slot: Slot | None = None) -> None:
        self._model, self.device, self._slot = model, device, slot
        self.loads: list[Work] = []
        """What enqueues the loading of each matrix to the slot."""
        if slot:
            slot.begin()
        self.used: set[str] = set()
        self._whole: dict[tuple[str, Range], Weight] = {}  # of which all rows are there

    def by_turns(self, slot: Slot) -> "Weights":
        """The same model's on the same device, but in a slot."""
        return Weights(self._model, self.device, slot)

    def __contains__(self, name: str) -> bool:
        return name in self._model.tensors

    def _tensor(self, name: str, *shape: int) -> Tensor:
        tensor = self._model.tensors.get(name)
        if tensor is None:
            raise GGUFError(f"{self._model.path}: tensor {name} is missing")
        if tensor.shape != shape:
            raise GGUFError(f"{self._model.path}: tensor {name} has shape {tensor.shape}, {shape} is needed")
        self.used.add(name)
        return tensor

    def matrix(
        self,
        name: str,
        columns: int,
        rows: int,
        cut: Range | None = None,
        cut_columns: Range | None = None,
        experts: int = 0,
    ) -> Weight:
        """The matrix [rows, columns] (or one a expert), or the block that the cuts leave."""
        tensor = self._tensor(name, columns, rows, *([experts] if experts else []))
        cut, cut_columns = cut or (0, rows), cut_columns or (0, columns)
        if (name, cut_columns) in self._whole:
            return self.device.rows(self._whole[name, cut_columns], cut)
        weight = self._placed(tensor, cut, cut_columns)
        if cut == (0, rows):
            self._whole[name, cut_columns] = weight
        return weight

    def _placed(self, tensor: Tensor, rows: Range, columns: Range) -> Weight:
        if self._slot is None:
            return self.device.weight(tensor, rows, columns)
        weight, load = self._slot.weight(tensor, rows, columns)
        self.loads.append(load)
        return weight

    def values(self, name: str, size: int) -> NDArray[np.float32]:
        """A small tensor of floats, on the host; they must be finite."""
        return self._finite(name, _floats(self._tensor(name, size), self._model))

    def vector(self, name: str, size: int, cut: Range | None = None, scale: float = 1.0) -> Memory:
        """A vector times scale on the device, or the part of it that `cut` leaves."""
        begin, end = cut or (0, size)
        with np.errstate(all="ignore"):
            values = self.values(name, size)[begin:end] * np.float32(scale)
        return self.device.vector(self._finite(name, values), f"the weights {name}")

    def optional(self, name: str, size: int) -> NDArray[np.float32] | None:
        """`values`, or None where there is no such tensor."""
        return self.values(name, size) if name in self else None

    def _finite(self, name: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
        if not np.isfinite(values).all():
            raise GGUFError(f"{self._model.path}: tensor {name} has values that are no numbers")
        return values


def refuse_unused(model: GGUF, used: set[str]) -> None:
    """GGUFError when the model has tensors that nobody took: without them it would say something else.

    llama.cpp refuses such files too. Tensors that change nothing may be left over.
    """
    unused = [name for name in model.tensors if name not in used and not _changes_nothing(model, name)]
    if unused:
        names = ", ".join(unused[:3]) + (f" and {len(unused) - 3} more" if len(unused) > 3 else "")
        raise GGUFError(
            f"{model.path}: this ggrun has no use for {names} in the architecture {model.architecture}, "
            "and would compute something else than the model means"
        )


def _changes_nothing(model: GGUF, name: str) -> bool:
    if _FFN_SCALE.fullmatch(name):
        return not find(model.architecture, model.path).ffn_scale
    if _LAYER_ROPE.fullmatch(name):  # some files repeat the factors in every layer
        whole = model.tensors.get("rope_freqs.weight")
        return whole is not None and np.array_equal(model.tensors[name].data, whole.data)
    return _IGNORABLE.fullmatch(name) is not None


def _floats(tensor: Tensor, model: Model) -> NDArray[np.float32]:
    if tensor.format.name == "BF16":
        return (tensor.data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    kinds: dict[str, Any] = {"F32": np.float32, "F16": np.float16}
    if tensor.format.name not in kinds:
        raise GGUFError(f"{model.path}: tensor {tensor.name} is {tensor.format.name}, floats are needed")
    values: NDArray[np.float32] = tensor.data.view(kinds[tensor.format.name]).astype(np.float32)
    return values
