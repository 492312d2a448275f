"""The hyperparameters of a model: what cannot be is one line that names the key."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ggrun import LLM, GgrunError
from ggrun.arch import find, names
from ggrun.arch.config import Config
from ggrun.gguf import GGUF, GGUFError
from tests.tiny import Tiny

YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 32}
FLOATS = (
    "attention.layer_norm_rms_epsilon",
    "attention.scale",
    "attention.temperature_scale",
    "rope.freq_base",
    "rope.scaling.factor",
    "rope.scaling.attn_factor",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "rope.scaling.yarn_log_multiplier",
)
POSITIVE = (
    "rope.freq_base",
    "rope.scaling.attn_factor",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
)


def config(path: Path, extra: dict[str, Any], **shape: Any) -> Config:
    with GGUF(Tiny(extra=extra, **shape).write(path / "model.gguf")) as model:
        return Config.from_gguf(model)


def refused(path: Path, extra: dict[str, Any], match: str, **shape: Any) -> None:
    with pytest.raises(GGUFError, match=match) as error:
        config(path, extra, **shape)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0])
@pytest.mark.parametrize("key", FLOATS)
def test_floats_must_be_finite_and_not_negative(key: str, value: float, tmp_path: Path) -> None:
    refused(tmp_path, YARN | {key: value}, f"llama.{key} is {value}: it must be a finite number")


@pytest.mark.parametrize("key", POSITIVE)
def test_floats_that_must_not_be_0(key: str, tmp_path: Path) -> None:
    refused(tmp_path, YARN | {key: 0.0}, f"llama.{key} is 0.0: .* more than 0")


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (YARN | {"rope.scaling.original_context_length": -5}, "original_context_length is -5"),
        (YARN | {"rope.scaling.yarn_ext_factor": math.inf}, "yarn_ext_factor is inf"),
        (YARN | {"rope.scaling.yarn_ext_factor": math.nan}, "yarn_ext_factor is nan"),
        ({"rope.scaling.factor": 1e-45}, "angles that are no numbers"),
        (YARN | {"rope.scaling.factor": 1e-45}, "angles that are no numbers"),
        ({"rope.freq_base": 1e-45}, "angles that are no numbers"),
        ({"rope.dimension_count": 0}, "rope.dimension_count is 0"),
        ({"rope.dimension_count": 18}, "rope.dimension_count is 18 for heads of 16"),
        ({"attention.temperature_length": -1}, "temperature_length is -1"),
        ({"attention.head_count_kv": [math.inf, math.inf]}, "head_count_kv is not a whole number for each"),
        ({"attention.head_count_kv": [2.5, 2.5]}, "head_count_kv is not a whole number for each of the 2"),
        ({"attention.head_count_kv": [2, 2, 2]}, "head_count_kv is not a whole number for each"),
        ({"attention.head_count_kv": [2]}, "head_count_kv is not a whole number for each"),
        ({"attention.head_count_kv": [True, True]}, "head_count_kv is not a whole number for each"),
        ({"attention.head_count_kv": [2, 1]}, "head_count_kv differs from layer to layer"),
        ({"attention.head_count_kv": [-2, -2]}, "head_count_kv is -2"),
        ({"embedding_length": [64, 64]}, "embedding_length.* is an array of numbers"),
        ({"attention.key_length": 1 << 30}, "key_length is 1073741824"),
        ({"embedding_length": (1 << 31) - 1}, "key_length is 536870911"),
        ({"feed_forward_length": 0}, "feed_forward_length is 0"),
        ({"block_count": 1025}, "1025 layers: more than 1024"),
        ({"expert_count": 513, "expert_used_count": 2}, "513 experts: more than 512"),
        ({"expert_count": 4, "expert_used_count": 5}, "5 of 4 experts"),
        ({"expert_count": 4, "expert_used_count": 0}, "0 of 4 experts"),
    ],
)
def test_values_that_cannot_be(extra: dict[str, Any], message: str, tmp_path: Path) -> None:
    refused(tmp_path, extra, message)


def test_defaults(tmp_path: Path) -> None:
    c = config(
        tmp_path, {"attention.head_count_kv": None, "attention.scale": 0.0, "rope.scaling.factor": 0.0}
    )
    assert (c.kv_heads, c.attention_scale) == (4, 0.25)
    assert (c.rope.dims, c.rope.base, c.rope.factor, c.rope.original_context) == (16, 10000.0, 1.0, 64)
    assert (c.rope.magnitude, c.rope.ext_factor, c.rope.query_slope) == (1.0, 0.0, 0.0)
    np.testing.assert_allclose(c.rope.frequencies(), 10000.0 ** (-np.arange(8) / 8), rtol=1e-6)


def test_numbers_of_all_layers(tmp_path: Path) -> None:
    lists = {"attention.head_count": [4, 4], "attention.head_count_kv": [1, 1], "feed_forward_length": [9, 9]}
    c = config(tmp_path, lists)
    assert (c.heads, c.kv_heads, c.ff) == (4, 1, 9)


def test_scale_linear_is_an_older_name_of_the_factor(tmp_path: Path) -> None:
    assert config(tmp_path, {"rope.scale_linear": 4.0}).rope.factor == 4.0
    assert config(tmp_path, {"rope.scale_linear": 4.0, "rope.scaling.factor": 2.0}).rope.factor == 2.0
    assert config(tmp_path, {"rope.scaling.factor": 2.0, "rope.scaling.type": "none"}).rope.factor == 1.0


def test_experts_have_their_own_width(tmp_path: Path) -> None:
    experts = {"expert_count": 4, "expert_used_count": 2}
    assert config(tmp_path, experts).ff == 96
    assert config(tmp_path, experts | {"expert_feed_forward_length": 32}).ff == 32
    assert (
        config(tmp_path, experts | {"expert_feed_forward_length": 32, "feed_forward_length": None}).ff == 32
    )
    assert config(tmp_path, {"expert_feed_forward_length": 32}).ff == 96


@pytest.mark.parametrize("base", [1.0, 0.5])
def test_bases_that_nobody_has_do_not_raise(base: float, tmp_path: Path) -> None:
    for extra in ({"rope.freq_base": base}, YARN | {"rope.freq_base": base}):
        assert np.isfinite(config(tmp_path, extra).rope.frequencies()).all()


@pytest.mark.parametrize("beta", [1e-45, 3e38])
@pytest.mark.parametrize("name", ["fast", "slow"])
def test_extreme_betas(name: str, beta: float, tmp_path: Path) -> None:
    rope = config(tmp_path, YARN | {f"rope.scaling.yarn_beta_{name}": beta}).rope
    assert np.isfinite(rope.frequencies()).all()


def test_architectures_are_found_by_name() -> None:
    assert names() == ["llama", "mistral3", "qwen2", "qwen3", "qwen3moe"]
    file = Path("some.gguf")
    assert [find(name, file).name for name in names()] == names()
    for name in ("config", "rope", "fields", "__init__", "", "llama.x"):
        with pytest.raises(GgrunError, match=r"^some\.gguf: unknown architecture"):
            find(name, file)


def test_a_key_that_is_missing(tmp_path: Path) -> None:
    for key in ("block_count", "embedding_length", "context_length", "attention.head_count"):
        refused(tmp_path, {key: None}, f"{key}.* is missing")
    with pytest.raises(GgrunError, match="rms_epsilon"):
        LLM(Tiny(extra={"attention.layer_norm_rms_epsilon": None}).write(tmp_path / "model.gguf"))
