"""What llama-bench says of a model: "llama 1B Q4_K - Medium", its size and its parameters."""

from collections import Counter
from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ggrun.gguf import GGUF

# general.file_type, in llama.cpp's words (llama-model-loader.cpp).
_FILE_TYPES = {
    0: "all F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1",
    10: "Q2_K - Medium", 11: "Q3_K - Small", 12: "Q3_K - Medium", 13: "Q3_K - Large",
    14: "Q4_K - Small", 15: "Q4_K - Medium", 16: "Q5_K - Small", 17: "Q5_K - Medium", 18: "Q6_K",
    19: "IQ2_XXS - 2.0625 bpw", 20: "IQ2_XS - 2.3125 bpw", 21: "Q2_K - Small",
    22: "IQ3_XS - 3.3 bpw", 23: "IQ3_XXS - 3.0625 bpw", 24: "IQ1_S - 1.5625 bpw",
    25: "IQ4_NL - 4.5 bpw", 26: "IQ3_S - 3.4375 bpw", 27: "IQ3_S mix - 3.66 bpw",
    28: "IQ2_S - 2.5 bpw", 29: "IQ2_M - 2.7 bpw", 30: "IQ4_XS - 4.25 bpw", 31: "IQ1_M - 1.75 bpw",
    32: "BF16", 36: "TQ1_0 - 1.69 bpw ternary", 37: "TQ2_0 - 2.06 bpw ternary", 38: "MXFP4 MoE",
    39: "NVFP4", 40: "Q1_0",
}  # fmt: skip


def model_bytes(model: "GGUF") -> int:
    """The bytes of all tensors."""
    return sum(tensor.nbytes for tensor in model.tensors.values())


def model_parameters(model: "GGUF") -> int:
    """The numbers in all tensors."""
    return sum(prod(tensor.shape) for tensor in model.tensors.values())


def model_type(model: "GGUF") -> str:
    """Architecture, size and quantization, in llama-bench's way."""
    label = model.get("general.size_label")
    size = label if isinstance(label, str) and label else _rounded(model_parameters(model))
    return f"{model.architecture} {size} {_quantization(model)}"


def _rounded(parameters: int) -> str:
    """As files are labelled: 7.4M, 135M, 1.1B, 70B."""
    for unit, letter in ((1e9, "B"), (1e6, "M")):
        if parameters >= unit:
            return f"{parameters / unit:.{1 if parameters < 10 * unit else 0}f}{letter}"
    return f"{parameters / 1e3:.0f}K"


def _quantization(model: "GGUF") -> str:
    """The file type; or, as a guess, the format that most of the bytes are in."""
    kind = model.get("general.file_type")
    if isinstance(kind, int) and kind in _FILE_TYPES:
        return _FILE_TYPES[kind]
    held: Counter[str] = Counter()
    for tensor in model.tensors.values():
        held[tensor.format.name] += tensor.nbytes
    return f"{held.most_common(1)[0][0]} (guessed)"
