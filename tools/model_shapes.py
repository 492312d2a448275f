"""What make_model.py writes beside weights: sizes changed by the user, metadata, factors of rope."""

import math
import string
from collections.abc import Iterator
from dataclasses import fields, replace
from itertools import islice, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggrun.plan.shapes import Shape, hyperparameters

SPACE = "\u2581"  # ▁: how SentencePiece writes a space
SPECIAL = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]


SIZES = tuple(f.name for f in fields(Shape) if f.type is int)
"""The fields of a shape that are whole numbers, and can be given anew."""


def resized(shape: Shape, **sizes: Any) -> Shape:
    """The shape with some of its sizes changed; ValueError, in words, when no model can have them."""
    new = replace(shape, **sizes)
    for name in SIZES:
        least = len(SPECIAL) if name == "vocab" else 0 if name.startswith("experts") else 1
        if getattr(new, name) < least:
            raise ValueError(f"{name.replace('_', ' ')} must be {least} or more, not {getattr(new, name)}")
    if new.heads % new.kv_heads:
        raise ValueError(f"{new.heads} heads cannot share {new.kv_heads} key-value heads")
    if new.head_dim % 2:
        raise ValueError(f"a head of {new.head_dim} cannot be rotated in pairs")
    if new.experts_used > new.experts or bool(new.experts) != bool(new.experts_used):
        raise ValueError(f"{new.experts_used} of {new.experts} experts cannot be used")
    if bool(new.experts) != bool(shape.experts):
        raise ValueError(f"{shape.name} has {'' if shape.experts else 'no '}experts, and keeps it so")
    return new


def rope_factors(shape: Shape) -> NDArray[np.float32]:
    """What Llama 3.1 and later divide the frequencies by: [head_dim / 2] (Meta's llama-models, RoPE scaling).

    Short waves stay, those longer than the old context are stretched, with a ramp from a quarter of it.
    """
    context, low, high = 8192, 1.0, 4.0
    waves = 2 * math.pi * shape.base ** (2 * np.arange(shape.head_dim // 2) / shape.head_dim)
    kept = np.clip((context / waves - low) / (high - low), 0.0, 1.0)
    factors: NDArray[np.float32] = (1 / ((1 - kept) / shape.rope_factor + kept)).astype(np.float32)
    return factors


def metadata(shape: Shape, mix: str, file_type: int) -> dict[str, Any]:
    """The key-value pairs of a model's file."""
    general = {
        "general.type": "model",
        "general.name": f"{shape.name} {mix}, random weights",
        "general.file_type": file_type,
        "general.quantization_version": 2,
    }
    return hyperparameters(shape) | general | _tokenizer(shape.vocab)


def _tokenizer(n: int) -> dict[str, Any]:
    pieces = SPECIAL + list(islice(_pieces(), n - len(SPECIAL)))
    kinds = [2, 3, 3] + [6] * 256 + [1] * (n - len(SPECIAL))  # unknown, control, byte, normal
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.scores": -np.arange(n, dtype=np.float32),
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
    }


def _pieces() -> Iterator[str]:
    """Characters, then all words of two, three and more letters, each also with a space before it."""
    yield SPACE
    yield from string.ascii_letters + string.digits + string.punctuation
    for size in (1, 2, 3, 4):
        for letters in product(string.ascii_lowercase, repeat=size):
            word = "".join(letters)
            yield SPACE + word
            if size > 1:
                yield word
