"""A member's weights: named tensors, checked, cut to the member's share, given to its device."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggrun.devices.base import Device, Memory, Weight
from ggrun.gguf import GGUF, GGUFError, Tensor
from ggrun.plan import Range


class Weights:
    """The tensors of a model, as one device takes them. Errors are GGUFErrors that name the tensor."""

    def __init__(self, model: GGUF, device: Device) -> None:
        self._model, self.device = model, device

    def __contains__(self, name: str) -> bool:
        return name in self._model.tensors

    def _tensor(self, name: str, *shape: int) -> Tensor:
        tensor = self._model.tensors.get(name)
        if tensor is None:
            raise GGUFError(f"{self._model.path}: tensor {name} is missing")
        if tensor.shape != shape:
            raise GGUFError(f"{self._model.path}: tensor {name} has shape {tensor.shape}, {shape} is needed")
        return tensor

    def matrix(self, name: str, columns: int, rows: int, cut: Range | None = None, cut_columns: Range | None
    = None,
               experts: int = 0) -> Weight:  # fmt: skip
        """The matrix [rows, columns] (or one a expert), or the block that the cuts leave."""
        tensor = self._tensor(name, columns, rows, *([experts] if experts else []))
        return self.device.weight(tensor, cut or (0, rows), cut_columns or (0, columns))

    def values(self, name: str, size: int) -> NDArray[np.float32]:
        """A small tensor of floats, on the host."""
        return _floats(self._tensor(name, size), self._model)

    def vector(self, name: str, size: int, cut: Range | None = None, scale: float = 1.0) -> Memory:
        """A vector times scale on the device, or the part of it that `cut` leaves."""
        begin, end = cut or (0, size)
        return self.device.vector(self.values(name, size)[begin:end] * np.float32(scale))

    def optional(self, name: str, size: int) -> NDArray[np.float32] | None:
        """`values`, or None where there is no such tensor."""
        return self.values(name, size) if name in self else None


def _floats(tensor: Tensor, model: GGUF) -> NDArray[np.float32]:
    if tensor.format.name == "BF16":
        return (tensor.data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    kinds: dict[str, Any] = {"F32": np.float32, "F16": np.float16}
    if tensor.format.name not in kinds:
        raise GGUFError(f"{model.path}: tensor {tensor.name} is {tensor.format.name}, floats are needed")
    values: NDArray[np.float32] = tensor.data.view(kinds[tensor.format.name]).astype(np.float32)
    return values
