"""Random models and devices for tests of the planner."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from ggrun.gguf import Outline
from ggrun.gguf.parse import TensorInfo
from ggrun.plan.facts import ModelFacts
from ggrun.plan.hardware import DeviceInfo
from ggrun.plan.mixes import find_mix
from ggrun.plan.shapes import Shape, hyperparameters, slots


def outline_of(shape: Shape, mix: str) -> Outline:
    chosen = find_mix(mix)
    tensors = {s.name: TensorInfo(s.name, s.shape, chosen.format(s, shape), 0) for s in slots(shape)}
    return Outline(Path("random"), hyperparameters(shape), tensors)


@dataclass(frozen=True)
class Model:
    shape: Shape
    mix: str

    @property
    def outline(self) -> Outline:
        return outline_of(self.shape, self.mix)

    @property
    def facts(self) -> ModelFacts:
        return ModelFacts.from_outline(self.outline)


@st.composite
def models(draw: Any) -> Model:
    kv_heads = draw(st.sampled_from([1, 2, 3, 4, 8]))
    experts = draw(st.sampled_from([0, 0, 4, 8]))
    shape = Shape(
        name="random", arch="qwen3moe" if experts else draw(st.sampled_from(["llama", "qwen2", "qwen3"])),
        layers=draw(st.integers(1, 6)), width=draw(st.sampled_from([64, 256, 320, 512])),
        heads=kv_heads * draw(st.sampled_from([1, 2, 4])), kv_heads=kv_heads,
        head_dim=draw(st.sampled_from([32, 64, 80])), ff=draw(st.sampled_from([96, 256, 512, 736, 1024])),
        vocab=draw(st.integers(100, 3000)), context=draw(st.sampled_from([64, 500, 4096, 32768])), base=1e4,
        eps=1e-5, tied=draw(st.booleans()), experts=experts, experts_used=min(experts, 2),
    )  # fmt: skip
    return Model(shape, draw(st.sampled_from(["F16", "Q4_0", "Q4_K_M", "Q8_0", "Q2_K", "IQ4_XS"])))


def card(name: str, memory: int, bandwidth: float = 1e11, shared: bool = False) -> DeviceInfo:
    return DeviceInfo(name, memory, memory, bandwidth, 100 * bandwidth, 1e10, shared=shared)


@st.composite
def machines(draw: Any, weights: int) -> list[DeviceInfo]:
    """Up to four cards and mostly a CPU, with memory from far too little to plenty."""
    found = []
    for i in range(draw(st.integers(0, 4))):
        memory = int(weights * draw(st.floats(0.0, 1.5))) + draw(st.integers(0, 1 << 24))
        found.append(card(f"cuda:{i}", memory, draw(st.sampled_from([1e10, 5e10, 9e10, 1e11]))))
    if not found or draw(st.integers(0, 3)):
        memory = int(weights * draw(st.floats(0.2, 3))) + draw(st.integers(0, 1 << 25))
        found.append(card("cpu", memory, draw(st.sampled_from([5e9, 5e10]))))
    return found


def with_more(device: DeviceInfo, nbytes: int) -> DeviceInfo:
    return replace(device, memory=device.memory + nbytes, free=device.free + nbytes)
