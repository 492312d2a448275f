"""Feed-forwards that the CPU holds, computed by CUDA cards for large batches."""

from pathlib import Path

import numpy as np
import pytest

from ggrun.arch.config import Config
from ggrun.devices.cuda.device import Cuda
from ggrun.engine.engine import Engine
from ggrun.gguf import GGUF
from ggrun.plan import single
from ggrun.plan.facts import ModelFacts
from ggrun.plan.usage import Sizes
from tests.cuda.models import cards
from tests.engine.test_peer import distance
from tests.offloads import MODELS, TOKENS, beside_the_cpu, cuda_machine, least_room, offloads_of
from tests.thinned import diagonal

pytestmark = pytest.mark.cuda


@pytest.fixture
def model(request: pytest.FixtureRequest, tmp_path: Path) -> GGUF:
    return GGUF(MODELS[request.param].write(tmp_path / "model.gguf"))


@pytest.mark.parametrize(("seed", "model"), diagonal(range(2), list(MODELS)), indirect=["model"])
def test_a_cuda_card_says_what_it_says_alone(seed: int, model: GGUF) -> None:
    """Large batches pass no other device: so it is the same, bit for bit, as with all weights on the card."""
    config = Config.from_gguf(model)
    alone = Engine(model, config, single(config, "cuda:0"), cards(1), Sizes(64, 16))
    devices, engine = cuda_machine(model, seed)
    want = alone.decode(TOKENS, all_logits=True)
    np.testing.assert_array_equal(engine.decode(TOKENS, all_logits=True), want)
    # Small ones pass the CPU, whose activations are quantized a little differently.
    assert distance(engine.decode([5, 6]), alone.decode([5, 6])) <= 1e-3
    for device in devices.values():
        device.close()


@pytest.mark.parametrize("model", MODELS, indirect=True)
def test_what_the_planner_counts_is_enough(model: GGUF, monkeypatch: pytest.MonkeyPatch) -> None:
    part = ModelFacts.from_outline(model).part(1)
    plan = beside_the_cpu(Config.from_gguf(model), ["cuda:0"])
    slots = offloads_of(plan, nbytes=part.total + part.padding)
    devices, engine = cuda_machine(model, 0, limit=least_room(model, "cuda:0"), offloads=slots)
    card = devices["cuda:0"]
    assert isinstance(card, Cuda)
    beside: list[bool] = []
    upload = card.driver.upload

    def noted(address: int, data: np.ndarray, **how: bool) -> None:
        beside.append(how.get("beside", False))
        upload(address, data, **how)

    monkeypatch.setattr(card.driver, "upload", noted)
    engine.decode(TOKENS[:16])
    assert sum(beside) >= 3 * engine.config.layers
