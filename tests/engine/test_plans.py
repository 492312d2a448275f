"""Every kind of plan computes what one device does."""

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from ggrun import LLM
from ggrun.gguf import GGUF
from tests.engine.test_peer import ARCHS, QUANTS, distance
from tests.plans import KINDS, Plans
from tests.shared import peer
from tests.tiny import Tiny

CPUS = ("cpu:0", "cpu:1", "cpu:2", "cpu:3")
EMULATED = ("emulated:0", "emulated:1", "emulated:2", "emulated:3")
MIXED = ("emulated:0", "cpu", "emulated:1", "cpu:1")
MODELS = {
    "llama": Tiny(layers=3),
    "tied and biased": Tiny(arch="qwen2", layers=2, tied=True, biases=True, kv_heads=4),
    "experts": Tiny(arch="qwen3moe", head_norms=True, layers=2, experts=7, experts_used=3),
    "q8_0": Tiny(layers=3, ff=160, width=128, format=GGMLQuantizationType.Q8_0),
    "odd sizes": Tiny(width=60, heads=9, kv_heads=3, key_dim=14, value_dim=22, ff=70, vocab=37),
}


def outcome(llm: LLM, tokens: list[int], n: int) -> tuple[np.ndarray, list[int]]:
    """All logits of a prompt, and the greedy text after it."""
    logits, text = llm.logits(tokens), llm.generate_tokens(tokens, temp=0.0)
    return logits, [token for token, _ in zip(text, range(n), strict=False)]


def same(path: Path, kinds: tuple[str, ...], devices: tuple[str, ...], tokens: list[int], n: int = 12) -> None:
    """Plans of these kinds give the same text as one device, and the same logits but for rounding."""
    options = {"n_ubatch": 7, "n_ctx": 256, "threads": 2}
    with LLM(path, **options) as llm:
        want, text = outcome(llm, tokens, n)
    plans = Plans(GGUF(path), devices)
    for kind in kinds:
        with LLM(path, plan=plans[kind], **options) as llm:
            got, got_text = outcome(llm, tokens, n)
        bar = 1e-4 if "row" in kind or kind == "everything" else 1e-5
        assert distance(got, want) <= bar, kind
        assert got_text == text, kind


@pytest.mark.parametrize("devices", [CPUS, EMULATED, MIXED], ids=lambda names: names[0])
@pytest.mark.parametrize("name", MODELS)
def test_every_plan(name: str, devices: tuple[str, ...], tmp_path: Path) -> None:
    path = MODELS[name].write(tmp_path / "model.gguf")
    same(path, KINDS, devices, list(range(1, 31)))


@pytest.mark.parametrize("kind", KINDS)
def test_any_order_of_late_streams(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Tiny(layers=3).write(tmp_path / "model.gguf")
    for seed in range(5):
        monkeypatch.setenv("GGRUN_EMULATED_SEED", str(seed))
        same(path, (kind,), EMULATED, list(range(1, 31)), 4)


def models() -> list[str]:
    return [f"quants/{name}" for name in QUANTS] + [f"archs/{name}" for name in ARCHS]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", models())
def test_every_model_with_every_plan(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = peer() / f"{name}.gguf"
    with np.load(path.with_suffix(".npz")) as arrays:
        tokens = arrays["tokens"].tolist()[:40]
    same(path, (kind,), CPUS, tokens)
    for seed in range(3):
        monkeypatch.setenv("GGRUN_EMULATED_SEED", str(seed))
        same(path, (kind,), EMULATED, tokens)
