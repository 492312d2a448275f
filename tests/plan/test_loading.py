"""What is said to fit is loaded and run on devices that hold not one byte more."""

import random
from pathlib import Path
from typing import Any

import pytest
from gguf import GGMLQuantizationType

from ggrun import LLM
from ggrun.devices.local import local_devices
from ggrun.gguf import Outline
from ggrun.plan.facts import ModelFacts
from ggrun.plan.options import PlanOptions
from ggrun.plan.planner import make_plan
from tests.tiny import Tiny

Q8_0 = GGMLQuantizationType.Q8_0
MODELS = [
    Tiny(layers=4, width=128, heads=8, kv_heads=4, ff=256, vocab=300, context=512, format=Q8_0),
    Tiny(layers=3, arch="qwen3moe", experts=4, experts_used=2, head_norms=True, ff=64, context=256),
    Tiny(layers=3, tied=True, vocab=500),
    Tiny(layers=3, width=256, heads=4, kv_heads=4, ff=512, vocab=2000, context=2048),
]


def flags(rng: random.Random, cards: int, host: bool, layers: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        "split_mode": rng.choice(["layer", "row", "none"]),
        "n_ctx": rng.choice([64, 128, 200]),
        "n_ubatch": rng.choice([1, 8, 64]),
    }
    if cards > 1 and rng.random() < 0.6:
        found["tensor_split"] = tuple(rng.randint(1, 3) for _ in range(cards))
    if host and rng.random() < 0.3:
        found["n_cpu_ffn"] = rng.randint(0, layers)
    if host and rng.random() < 0.3:
        found["n_gpu_layers"] = rng.randint(0, layers + 1)
    return found


@pytest.mark.parametrize("kind", ["cpu", "emulated"])
@pytest.mark.parametrize("model", MODELS, ids=lambda m: f"{m.arch}-{m.width}-{m.vocab}")
def test_the_last_byte_is_enough(model: Tiny, kind: str, tmp_path: Path) -> None:
    path, rng = model.write(tmp_path / "model.gguf"), random.Random(model.vocab)
    facts = ModelFacts.from_outline(Outline.read(path))
    for _ in range(8):
        cards, host = rng.randint(1, 3), rng.random() < 0.7
        options = flags(rng, cards, host, facts.config.layers)

        def devices(sizes: list[int], host: bool = host) -> str:
            return ",".join([*(f"{kind}:{i}:{n}B" for i, n in enumerate(sizes)), *(["cpu"] if host else [])])

        roomy = [1 << 30] * cards
        planned = make_plan(facts, local_devices(devices(roomy)), PlanOptions(**options))
        uses = [planned.uses.get(f"{kind}:{i}:{n}B") for i, n in enumerate(roomy)]
        tight = devices([use.total if use else 1 for use in uses])
        with LLM(path, devices=tight, threads=2, **options) as llm:
            assert len(list(llm.generate_tokens([1, 2, 3], temp=0.0))) > 10
            llm.logits(range(1, 49))
