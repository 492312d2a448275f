"""Our logits against llama.cpp's (shared/peer), in the bars' own measure: sum((a - b)^2) / sum(b^2)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from ggrun import LLM
from ggrun.arch import names
from tests.shared import peer

ARCHS = ["llama-dense", "qwen2-dense", "qwen3-dense", "mistral3-dense", "llama-moe", "qwen3moe-moe"]
QUANTS = [
    "llama-dense-BF16",
    "llama-dense-IQ3_S",
    "llama-dense-IQ4_NL",
    "llama-dense-IQ4_XS",
    "llama-dense-Q2_K",
    "llama-dense-Q3_K_M",
    "llama-dense-Q4_0",
    "llama-dense-Q4_1",
    "llama-dense-Q4_K_M",
    "llama-dense-Q5_0",
    "llama-dense-Q5_1",
    "llama-dense-Q5_K_M",
    "llama-dense-Q6_K",
    "llama-dense-Q8_0",
    "llama-dense-TQ2_0",
    "llama-odd-ff-Q4_K_M",
    "llama3-gqa-Q4_K_M",
    "qwen3-gqa-Q4_K_M",
]


def distance(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(((a - b) ** 2).sum() / (b**2).sum())


def in_batches(llm: LLM, tokens: Sequence[int], size: int) -> np.ndarray:
    """All logits, with `size` tokens a batch."""
    engine = llm._engine
    engine.cache.truncate(0, 0)
    parts = [engine.decode(tokens[i : i + size], all_logits=True) for i in range(0, len(tokens), size)]
    return np.concatenate(parts)


def reference(path: Path) -> dict[str, np.ndarray]:
    """llama.cpp's tokens and logits for a model."""
    with np.load(path.with_suffix(".npz")) as arrays:
        return dict(arrays)


@pytest.mark.parametrize("size", [1000, 7, 1])
@pytest.mark.parametrize("name", ARCHS)
def test_architectures(name: str, size: int) -> None:
    path = peer() / "archs" / f"{name}.gguf"
    want = reference(path)
    with LLM(path) as llm:
        got = in_batches(llm, want["tokens"], size)
    assert distance(got, want["logits"]) <= 1e-6


@pytest.mark.parametrize("name", QUANTS)
def test_formats(name: str) -> None:
    path = peer() / "quants" / f"{name}.gguf"
    want = reference(path)
    with LLM(path, n_ctx=256) as llm:
        got = llm.logits(want["tokens"])
    assert distance(got, want["exact"]) <= 1.1 * distance(want["logits"], want["exact"])


def test_nothing_in_the_peer_is_forgotten() -> None:
    def architecture(path: Path) -> str:
        return path.stem.rsplit("-", 1)[0].replace("-", "_")

    archs = {p.stem for p in (peer() / "archs").glob("*.gguf") if architecture(p) in names()}
    assert archs == set(ARCHS)
    exact = {p.stem for p in (peer() / "quants").glob("*.npz") if "exact" in reference(p)}
    assert exact == set(QUANTS)
