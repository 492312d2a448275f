"""Every kind of plan on emulated cards: the text of one card in any order of their streams, few copies."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ggrun.devices.cuda.device import Cuda
from ggrun.engine.engine import Engine
from ggrun.gguf import GGUF
from tests.cuda import models
from tests.cuda.models import cards, engine, logits
from tests.engine.test_peer import distance
from tests.plans import KINDS, Plans
from tests.thinned import diagonal
from tests.tiny import Tiny

pytestmark = pytest.mark.cuda

TOKENS = [i * 7 % 36 for i in range(12)]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Tiny(layers=3).write(tmp_path_factory.mktemp("splits") / "model.gguf")


def outcome(of: Engine) -> tuple[NDArray[np.float32], list[int]]:
    """All logits of a prompt, and the greedy text after it."""
    prompt, text = logits(of, TOKENS), []
    after = prompt[-1:]
    for _ in range(4):
        text.append(int(after[-1].argmax()))
        after = of.decode(text[-1:])
    return prompt, text


@pytest.fixture(scope="module")
def wanted(path: Path) -> tuple[NDArray[np.float32], list[int]]:
    return outcome(engine(path, cards(1), n_ubatch=5))


@pytest.mark.parametrize(("seed", "kind"), diagonal(range(20), KINDS))
def test_the_text_of_one_card(
    kind: str, seed: int, path: Path, wanted: tuple[NDArray[np.float32], list[int]]
) -> None:
    """Copies go directly, or by way of the host's memory."""
    devices = cards(4, seed=seed, direct=bool(seed % 2))
    plan = Plans(GGUF(path), tuple(devices))[kind]
    got, text = outcome(engine(path, devices, plan, n_ubatch=5))
    assert text == wanted[1]
    sums = any(len(stage.members) > 1 and stage.halves[0] < stage.halves[1] for stage in plan.stages)
    assert distance(got, wanted[0]) <= (1e-4 if sums else 1e-5)


@pytest.mark.parametrize("kind", ["layer 2", "layer 4", "overflow most", "half layers", "regex"])
def test_one_copy_a_boundary(kind: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if models.REAL:
        pytest.skip("copies are counted on the emulator")
    devices = cards(4)
    plan = Plans(GGUF(path), tuple(devices))[kind]
    split = engine(path, devices, plan)
    split.decode(TOKENS)
    copies: list[tuple[str, str]] = []
    copy = Cuda.copy

    def counted(self: Cuda, source: Any, rows: int, device: Any, target: Any) -> None:
        if device is not self:
            copies.append((self.name, device.name))
        copy(self, source, rows, device, target)

    monkeypatch.setattr(Cuda, "copy", counted)
    split.decode([1])
    assert copies == [(a.members[0].device, b.members[0].device) for a, b in pairwise(plan.stages)]
