"""Architectures as data: one small file each, found by the name in general.architecture.

A file says in what its architecture differs from a pre-norm decoder with rotary embedding and SwiGLU.
What a model's own tensors tell (biases, norms on heads, experts, tied embeddings) is no option: it is
there or it is not.
"""

import pkgutil
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from ggrun.errors import GgrunError


@dataclass(frozen=True)
class Arch:
    """The options of an architecture."""

    name: str
    rope_neighbours: bool = False  # rotate neighbours (llama.cpp's NORM), not the halves of a head (NEOX)
    ffn_scale: bool = True  # whether ffn_*.scale tensors count
    normalize_experts: bool = True  # the weights of the chosen experts sum to one


def names() -> list[str]:
    """All architectures that there is a file for."""
    return sorted({module.name for module in pkgutil.iter_modules(__path__)} - {"config", "fields", "rope"})


def find(name: str, path: Path) -> Arch:
    """The architecture of this name; GgrunError, with the file that has it, when it is not one of ours."""
    if name not in names():
        raise GgrunError(f"{path}: unknown architecture {name!r:.60}: this ggrun runs {', '.join(names())}")
    arch: Arch = import_module(f"ggrun.arch.{name}").ARCH
    return arch
