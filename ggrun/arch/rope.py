"""Rotary embedding: the frequencies of a model, with everything that stretches its context."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggrun.gguf import GGUF, GGUFError

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Rope:
    """How positions turn into angles."""

    dims: int  # the first dims of a head are rotated
    base: float
    scaling: str  # "none", "linear" or "yarn"
    factor: float  # the context is stretched by this
    original_context: int
    magnitude: float  # of the rotated vectors
    ext_factor: float
    beta_fast: float
    beta_slow: float
    # Queries grow with the position, 1 + slope * log(1 + floor(position / period)); slope 0: they do not.
    query_slope: float
    query_period: float

    @classmethod
    def from_gguf(cls, model: GGUF, dims: int, context: int) -> "Rope":
        """Read <arch>.rope.* and <arch>.attention.temperature_*; GGUFError for what cannot be."""
        prefix = model.architecture
        key = f"{prefix}.rope.scaling"
        scaling = model.str_(f"{key}.type", "linear")
        if scaling not in ("none", "linear", "yarn"):
            raise GGUFError(
                f"{model.path}: {key}.type is {scaling!r:.40}; this ggrun knows none, linear and yarn"
            )
        # A factor of 0 is how files say that there is none; scale_linear is its name before 2023-09.
        factor = model.float_(f"{key}.factor", model.float_(f"{prefix}.rope.scale_linear", 0.0)) or 1.0
        ext_factor = model.float_(f"{key}.yarn_ext_factor", -1.0)
        rope = cls(
            dims=model.int_(f"{prefix}.rope.dimension_count", dims),
            base=model.float_(f"{prefix}.rope.freq_base", 10000.0),
            scaling=scaling,
            factor=1.0 if scaling == "none" else factor,
            original_context=model.int_(f"{key}.original_context_length", context) or context,
            magnitude=model.float_(f"{key}.attn_factor", 1.0),
            ext_factor=(1.0 if scaling == "yarn" else 0.0) if ext_factor < 0 else ext_factor,
            beta_fast=model.float_(f"{key}.yarn_beta_fast", 32.0),
            beta_slow=model.float_(f"{key}.yarn_beta_slow", 1.0),
            query_slope=model.float_(f"{prefix}.attention.temperature_scale", 0.0),
            query_period=float(model.int_(f"{prefix}.attention.temperature_length", 0) or context),
        )
        rope._check(model, dims)
        log_multiplier = model.float_(f"{key}.yarn_log_multiplier", 0.0)
        return rope if rope.ext_factor == 0.0 else rope._with_yarn_magnitude(log_multiplier)

    def _check(self, model: GGUF, head_dim: int) -> None:
        if not 0 < self.dims <= head_dim or self.dims % 2:
            raise GGUFError(f"{model.path}: rope.dimension_count is {self.dims} for heads of {head_dim}")
        if not (
            math.isfinite(self.base) and self.base > 0 and math.isfinite(self.factor) and self.factor > 0
        ):
            raise GGUFError(
                f"{model.path}: rope base {self.base} or factor {self.factor} is not a positive number"
            )

    def _with_yarn_magnitude(self, log_multiplier: float) -> "Rope":
        """YaRN's attention temperature: 0.1 log(factor) + 1 (Peng et al. 2023), or what the model trained
        with."""

        def temperature(multiplier: float) -> float:
            return 1.0 if self.factor <= 1.0 else 0.1 * multiplier * math.log(self.factor) + 1.0

        magnitude = temperature(1.0) / (temperature(log_multiplier) if log_multiplier else 1.0)
        return replace(self, magnitude=self.magnitude * magnitude)

    def frequencies(self, factors: Floats | None = None) -> Floats:
        """The angle that one position adds, for each pair: float32 [dims / 2]; `factors` divide (Llama 3)."""
        pairs = np.arange(self.dims // 2)
        plain: Floats = self.base ** (-2.0 * pairs / self.dims)
        if factors is not None:
            plain = plain / factors
        if self.ext_factor == 0.0:
            return (plain / self.factor).astype(np.float32)
        low, high = self._correction(self.beta_fast), self._correction(self.beta_slow)
        low, high = max(0.0, math.floor(low)), min(self.dims - 1.0, math.ceil(high))
        ramp = 1.0 - np.clip((pairs - low) / max(0.001, high - low), 0.0, 1.0)
        mix = ramp * self.ext_factor
        mixed: Floats = plain / self.factor * (1.0 - mix) + plain * mix
        return mixed.astype(np.float32)

    def _correction(self, rotations: float) -> float:
        """The pair that turns `rotations` times within the original context (Peng et al. 2023, section
        3.2)."""
        turns = self.original_context / (rotations * 2.0 * math.pi)
        return self.dims * math.log(turns) / (2.0 * math.log(self.base))
