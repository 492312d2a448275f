"""The hyperparameters of a model, read from its metadata and checked."""

from dataclasses import dataclass

import numpy as np

from ggrun.arch import Arch, find
from ggrun.arch.rope import Rope
from ggrun.gguf import GGUF, GGUFError

MAX_LAYERS = 1024


@dataclass(frozen=True)
class Config:
    """The sizes of a model. heads, kv_heads and ff are of the whole model, not of one device's share."""

    arch: Arch
    layers: int
    width: int
    heads: int
    kv_heads: int
    key_dim: int  # of a head
    value_dim: int
    ff: int  # of the dense feed-forward, or of one expert
    vocab: int
    context: int  # that the model was made for
    eps: float
    attention_scale: float
    experts: int
    experts_used: int
    rope: Rope

    @classmethod
    def from_gguf(cls, model: GGUF) -> "Config":
        """Read a model's metadata; GGUFError says what is missing or cannot be."""
        arch = find(model.architecture)
        width = _size(model, "embedding_length")
        heads = _size(model, "attention.head_count")
        key_dim = _size(model, "attention.key_length", width // heads)
        context = _size(model, "context_length")
        experts = _size(model, "expert_count", 0, least=0)
        config = cls(
            arch=arch,
            layers=_size(model, "block_count"),
            width=width,
            heads=heads,
            kv_heads=_size(model, "attention.head_count_kv", heads),
            key_dim=key_dim,
            value_dim=_size(model, "attention.value_length", width // heads),
            ff=_ff(model, experts),
            vocab=_vocab(model),
            context=context,
            eps=model.float_(f"{arch.name}.attention.layer_norm_rms_epsilon"),
            attention_scale=model.float_(f"{arch.name}.attention.scale", 0.0) or key_dim**-0.5,
            experts=experts,
            experts_used=_size(model, "expert_used_count", 0, least=0),
            rope=Rope.from_gguf(model, key_dim, context),
        )
        config._check(model)
        return config

    def _check(self, model: GGUF) -> None:
        if self.heads % self.kv_heads:
            raise GGUFError(f"{model.path}: {self.heads} heads cannot share {self.kv_heads} key-value heads")
        if self.layers > MAX_LAYERS:
            raise GGUFError(
                f"{model.path}: {self.layers} layers: more than {MAX_LAYERS}, which is not plausible"
            )
        if self.experts and not 0 < self.experts_used <= self.experts:
            raise GGUFError(f"{model.path}: {self.experts_used} of {self.experts} experts cannot be used")


def _size(model: GGUF, name: str, default: int | None = None, least: int = 1) -> int:
    """A whole number of at least `least`, or an array of equal ones (some files have one a layer)."""
    key = f"{model.architecture}.{name}"
    value = model.get(key)
    if isinstance(value, np.ndarray) and len(value) and (value == value[0]).all():
        number = int(value[0])
    elif isinstance(value, np.ndarray):
        raise GGUFError(f"{model.path}: {key} differs from layer to layer, which this ggrun does not run")
    else:
        number = model.int_(key, default)
    if number < least or number >= 1 << 31:
        raise GGUFError(f"{model.path}: {key} is {number}")
    return number


def _ff(model: GGUF, experts: int) -> int:
    dense = _size(model, "feed_forward_length", 0, least=0)
    return (_size(model, "expert_feed_forward_length", dense, least=0) or dense) if experts else dense


def _vocab(model: GGUF) -> int:
    embedding = model.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise GGUFError(
            f"{model.path}: there is no matrix token_embd.weight: not a language model, or damaged"
        )
    return embedding.shape[1]
