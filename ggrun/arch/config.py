"""The hyperparameters of a model, read from its metadata and checked."""

from dataclasses import dataclass

from ggrun.arch import Arch, find
from ggrun.arch.fields import number, per_layer, whole
from ggrun.arch.rope import Rope
from ggrun.gguf import GGUFError, Outline

MAX_LAYERS = 1024
MAX_HEAD = 1 << 16  # far beyond any model; tables are made for it before the tensors are looked at
MAX_EXPERTS = 512  # llama.cpp's limit


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
    def from_gguf(cls, model: Outline) -> "Config":
        """Read a model's metadata; GGUFError says what is missing or cannot be."""
        arch = find(model.architecture, model.path)
        layers = whole(model, "block_count")
        width = whole(model, "embedding_length")
        heads = per_layer(model, "attention.head_count", layers)
        key_dim = whole(model, "attention.key_length", width // heads, most=MAX_HEAD)
        context = whole(model, "context_length")
        experts = whole(model, "expert_count", 0, least=0)
        config = cls(
            arch=arch,
            layers=layers,
            width=width,
            heads=heads,
            kv_heads=per_layer(model, "attention.head_count_kv", layers, heads),
            key_dim=key_dim,
            value_dim=whole(model, "attention.value_length", width // heads, most=MAX_HEAD),
            ff=_ff(model, layers, experts),
            vocab=_vocab(model),
            context=context,
            eps=number(model, "attention.layer_norm_rms_epsilon"),
            attention_scale=number(model, "attention.scale", 0.0) or key_dim**-0.5,
            experts=experts,
            experts_used=whole(model, "expert_used_count", 0, least=0),
            rope=Rope.from_gguf(model, key_dim, context),
        )
        config._check(model)
        return config

    def _check(self, model: Outline) -> None:
        if self.heads % self.kv_heads:
            raise GGUFError(f"{model.path}: {self.heads} heads cannot share {self.kv_heads} key-value heads")
        if self.layers > MAX_LAYERS:
            raise GGUFError(f"{model.path}: {self.layers} layers: more than {MAX_LAYERS}")
        if self.experts > MAX_EXPERTS:
            raise GGUFError(f"{model.path}: {self.experts} experts: more than {MAX_EXPERTS}")
        if self.experts and not 0 < self.experts_used <= self.experts:
            raise GGUFError(f"{model.path}: {self.experts_used} of {self.experts} experts cannot be used")


def _ff(model: Outline, layers: int, experts: int) -> int:
    """The columns of the feed-forward: of one expert, where the file says it, or of the dense one."""
    of_expert = whole(model, "expert_feed_forward_length", 0, least=0) if experts else 0
    return of_expert or per_layer(model, "feed_forward_length", layers)


def _vocab(model: Outline) -> int:
    embedding = model.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise GGUFError(
            f"{model.path}: there is no matrix token_embd.weight: not a language model, or damaged"
        )
    return embedding.shape[1]
