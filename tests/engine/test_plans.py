"""Every kind of plan computes what one device does.

Stages change not a bit. Where members sum what they have, the order of additions is another one, and then
quantized activations now and then fall on the other side of a step: over some layers this grows to a noise
that one device has too, from one batch size to another. So a row plan must be within 1e-4, or no farther from
one device than that is from itself; and its text may part only where one device is undecided to within that
noise.
"""

import random
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from ggrun import LLM
from ggrun.arch.config import Config
from ggrun.gguf import GGUF
from ggrun.plan import Plan
from tests.engine.test_peer import ARCHS, QUANTS, distance
from tests.plans import KINDS, Plans, random_plan
from tests.shared import peer
from tests.tiny import Tiny

CPUS = ("cpu:0", "cpu:1", "cpu:2", "cpu:3")
EMULATED = ("emulated:0", "emulated:1", "emulated:2", "emulated:3")
MIXED = ("emulated:0", "cpu", "emulated:1", "cpu:1")


def more(sizes: dict[str, int]) -> dict[str, np.ndarray]:
    """Vectors for each of two layers."""
    rng = np.random.default_rng(3)
    return {
        f"blk.{i}.{name}": rng.uniform(0.5, 1.5, n).astype(np.float32)
        for i in (0, 1)
        for name, n in sizes.items()
    }


BIASES = {"attn_output.bias": 64, "ffn_down.bias": 64, "ffn_up.bias": 96, "ffn_gate.bias": 96}
SCALES = {"attn_output.scale": 1, "attn_q.scale": 1, "ffn_down.scale": 1, "ffn_up.scale": 1}
MODELS = {
    "llama": Tiny(layers=3),
    "tied and biased": Tiny(arch="qwen2", layers=2, tied=True, biases=True, kv_heads=4),
    "experts": Tiny(arch="qwen3moe", head_norms=True, layers=2, experts=7, experts_used=3),
    "q8_0": Tiny(layers=2, ff=160, width=128, format=GGMLQuantizationType.Q8_0),
    "biases and scales": Tiny(biases=True, more=more(BIASES | SCALES)),
    "scales of experts": Tiny(experts=5, experts_used=2, more=more({"ffn_down_exps.scale": 5})),
    "odd sizes": Tiny(width=60, heads=9, kv_heads=3, key_dim=14, value_dim=22, ff=70, vocab=37),
}


OPTIONS = {"n_ctx": 256, "threads": 2}


def outcome(llm: LLM, tokens: list[int], n: int) -> tuple[np.ndarray, list[int]]:
    """All logits of a prompt, and the greedy text after it."""
    logits, text = llm.logits(tokens), llm.generate_tokens(tokens, temp=0.0)
    return logits, [token for token, _ in zip(text, range(n), strict=False)]


class OneDevice:
    """What one device says, and how far it is from itself when its batches are larger."""

    def __init__(self, path: Path, tokens: list[int], n: int) -> None:
        self.path, self.tokens = path, tokens
        with LLM(path, n_ubatch=7, **OPTIONS) as llm:
            self.logits, self.text = outcome(llm, tokens, n)
        with LLM(path, n_ubatch=64, **OPTIONS) as llm:  # so many that products are made in another way
            self.noise = distance(llm.logits(tokens), self.logits)

    def compare(self, plan: Plan, n_ubatch: int = 7) -> None:
        """The plan gives the same logits and the same text."""
        with LLM(self.path, plan=plan, n_ubatch=n_ubatch, **OPTIONS) as llm:
            logits, text = outcome(llm, self.tokens, len(self.text))
        sums = any(len(stage.members) > 1 and stage.halves[0] < stage.halves[1] for stage in plan.stages)
        assert distance(logits, self.logits) <= (max(1e-4, self.noise) if sums else 1e-5)
        if text != self.text:
            assert sums
            assert self.indecision(text) <= 5 * max(1e-4, self.noise) ** 0.5

    def indecision(self, text: list[int]) -> float:
        """How much better one device finds its own token, where a text parts from its own."""
        i = next(i for i, (ours, theirs) in enumerate(zip(self.text, text, strict=True)) if ours != theirs)
        with LLM(self.path, n_ubatch=7, **OPTIONS) as llm:
            logits = llm.logits(self.tokens + text[:i])[-1]
        return float((logits[self.text[i]] - logits[text[i]]) / logits.std())


def same(
    path: Path, kinds: tuple[str, ...], devices: tuple[str, ...], tokens: list[int], n: int = 12
) -> None:
    """Plans of these kinds compute what one device does."""
    one, plans = OneDevice(path, tokens, n), Plans(GGUF(path), devices)
    for kind in kinds:
        one.compare(plans[kind])


@pytest.mark.parametrize("devices", [CPUS, EMULATED, MIXED], ids=lambda names: names[0])
@pytest.mark.parametrize("name", MODELS)
def test_every_plan(name: str, devices: tuple[str, ...], tmp_path: Path) -> None:
    path = MODELS[name].write(tmp_path / "model.gguf")
    same(path, KINDS, devices, list(range(1, 31)))


@pytest.mark.parametrize("kind", KINDS)
def test_any_order_of_late_streams(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Tiny(layers=3).write(tmp_path / "model.gguf")
    one, plan = OneDevice(path, list(range(1, 31)), 4), Plans(GGUF(path), EMULATED)[kind]
    for seed in range(20):
        monkeypatch.setenv("GGRUN_EMULATED_SEED", str(seed))
        one.compare(plan)


@pytest.mark.parametrize("devices", [CPUS, EMULATED, MIXED], ids=["cpu", "emulated", "mixed"])
@pytest.mark.parametrize("name", ["llama", "experts", "odd sizes", "biases and scales"])
@pytest.mark.parametrize(
    "seeds", [range(8), pytest.param(range(8, 25), marks=pytest.mark.slow)], ids=["some", "more"]
)
def test_any_plan(
    name: str, devices: tuple[str, ...], seeds: range, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plans as nobody would make them."""
    path = MODELS[name].write(tmp_path / "model.gguf")
    one, config = OneDevice(path, list(range(1, 31)), 5), Config.from_gguf(GGUF(path))
    for seed in seeds:
        monkeypatch.setenv("GGRUN_EMULATED_SEED", str(seed))
        rng = random.Random(f"{name} {seed}")
        one.compare(random_plan(config, devices, rng), rng.choice((1, 3, 8, 30)))


def models() -> list[str]:
    return [f"quants/{name}" for name in QUANTS] + [f"archs/{name}" for name in ARCHS]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", models())
def test_every_model_with_every_plan(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = peer() / f"{name}.gguf"
    with np.load(path.with_suffix(".npz")) as arrays:
        one = OneDevice(path, arrays["tokens"].tolist()[:40], 12)
    one.compare(Plans(GGUF(path), CPUS)[kind])
    for seed in range(3):
        monkeypatch.setenv("GGRUN_EMULATED_SEED", str(seed))
        one.compare(Plans(GGUF(path), EMULATED)[kind])
