"""Rotary embedding: the frequencies of a model, with everything that stretches its context."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggrun.arch.fields import number, whole
from ggrun.gguf import GGUFError, Outline

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
    def from_gguf(cls, model: Outline, dims: int, context: int) -> "Rope":
        """Read <arch>.rope.* and <arch>.attention.temperature_*; GGUFError for what cannot be."""
        scaling = _scaling(model)
        original = whole(model, "rope.scaling.original_context_length", context, least=0)
        # A factor of 0 is how files say that there is none; scale_linear is its name before 2023-09.
        factor = number(model, "rope.scaling.factor", number(model, "rope.scale_linear", 0.0)) or 1.0
        rope = cls(
            dims=_dims(model, dims),
            base=number(model, "rope.freq_base", 10000.0, positive=True),
            scaling=scaling,
            factor=1.0 if scaling == "none" else factor,
            original_context=original or context,
            magnitude=number(model, "rope.scaling.attn_factor", 1.0, positive=True),
            ext_factor=_ext_factor(model, scaling),
            beta_fast=number(model, "rope.scaling.yarn_beta_fast", 32.0, positive=True),
            beta_slow=number(model, "rope.scaling.yarn_beta_slow", 1.0, positive=True),
            query_slope=number(model, "attention.temperature_scale", 0.0),
            query_period=float(whole(model, "attention.temperature_length", 0, least=0) or context),
        )
        log_multiplier = number(model, "rope.scaling.yarn_log_multiplier", 0.0)
        rope = rope if rope.ext_factor == 0.0 else rope._with_yarn_magnitude(log_multiplier)
        rope._check(model)
        return rope

    def _check(self, model: Outline) -> None:
        """Numbers that are fine one by one can still overflow together."""
        if not (np.isfinite(self._frequencies()).all() and np.isfinite(np.float32(self.magnitude))):
            raise GGUFError(
                f"{model.path}: {model.architecture}.rope.freq_base {self.base} and rope.scaling.* (factor "
                f"{self.factor}) make angles that are no numbers"
            )

    def _with_yarn_magnitude(self, log_multiplier: float) -> "Rope":
        """YaRN's temperature: 0.1 log(factor) + 1 (Peng et al. 2023), over what the model trained with."""

        def temperature(multiplier: float) -> float:
            return 1.0 if self.factor <= 1.0 else 0.1 * multiplier * math.log(self.factor) + 1.0

        magnitude = temperature(1.0) / (temperature(log_multiplier) if log_multiplier else 1.0)
        return replace(self, magnitude=self.magnitude * magnitude)

    def frequencies(self, factors: Floats | None = None) -> Floats:
        """The angle that one position adds, for each pair: float32 [dims / 2]; `factors` divide (Llama 3).

        GGUFError for factors, such as 0, that make angles that are no numbers.
        """
        frequencies = self._frequencies(1.0 if factors is None else factors)
        if not np.isfinite(frequencies).all():
            raise GGUFError("tensor rope_freqs.weight has factors that make angles that are no numbers")
        return frequencies

    def _frequencies(self, factors: Floats | float = 1.0) -> Floats:
        with np.errstate(all="ignore"):
            pairs = np.arange(self.dims // 2)
            plain = np.float64(self.base) ** (-2.0 * pairs / self.dims) / factors
            if self.ext_factor == 0.0:
                return (plain / self.factor).astype(np.float32)
            low = np.maximum(0.0, np.floor(self._correction(self.beta_fast)))
            high = np.minimum(self.dims - 1.0, np.ceil(self._correction(self.beta_slow)))
            ramp = 1.0 - np.clip((pairs - low) / np.maximum(0.001, high - low), 0.0, 1.0)
            mix = ramp * self.ext_factor
            mixed: Floats = plain / self.factor * (1.0 - mix) + plain * mix
            return mixed.astype(np.float32)

    def _correction(self, rotations: float) -> np.float64:
        """The pair that turns `rotations` times in the original context (Peng et al. 2023, section 3.2)."""
        turns = np.float64(self.original_context) / (rotations * 2.0 * math.pi)
        return np.float64(self.dims * np.log(turns) / (2.0 * np.log(np.float64(self.base))))


def _scaling(model: Outline) -> str:
    key = f"{model.architecture}.rope.scaling.type"
    scaling = model.str_(key, "linear")
    if scaling not in ("none", "linear", "yarn"):
        raise GGUFError(f"{model.path}: {key} is {scaling!r:.40}; this ggrun knows none, linear and yarn")
    return scaling


def _dims(model: Outline, head_dim: int) -> int:
    dims = whole(model, "rope.dimension_count", head_dim)
    if dims > head_dim or dims % 2:
        raise GGUFError(
            f"{model.path}: {model.architecture}.rope.dimension_count is {dims} for heads of {head_dim}"
        )
    return dims


def _ext_factor(model: Outline, scaling: str) -> float:
    """How much of YaRN's mix there is; what is negative says that the kind of scaling decides."""
    key = f"{model.architecture}.rope.scaling.yarn_ext_factor"
    given = model.float_(key, -1.0)
    if not math.isfinite(given):
        raise GGUFError(f"{model.path}: {key} is {given}: it must be a number")
    return given if given >= 0.0 else float(scaling == "yarn")
