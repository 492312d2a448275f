"""How many bytes a token takes from memory: in decode, that and the memory's speed give the time."""

from ggrun.arch.config import Config
from ggrun.gguf import Declared, Outline


def weight_bytes(model: Outline, config: Config) -> int:
    """The bytes of weights that one token of one sequence reads: each tensor once, but for what it skips.

    It skips the experts that are not its own, and all rows of the embedding but one, unless the embedding is
    the output matrix too.
    """
    return sum(_read(model, config, tensor) for tensor in model.tensors.values())


def cell_bytes(config: Config, row_bytes: int) -> int:
    """The bytes of the KV cache that a token reads for each position before it and for its own.

    row_bytes: of a key and a value of one head, in the cache's formats.
    """
    return config.layers * config.kv_heads * row_bytes


def _read(model: Outline, config: Config, tensor: Declared) -> int:
    if "_exps." in tensor.name:
        return tensor.nbytes * config.experts_used // config.experts
    if tensor.name == "token_embd.weight" and "output.weight" in model.tensors:
        return tensor.row_bytes
    return tensor.nbytes
