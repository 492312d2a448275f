"""Which tensor gets which format: llama.cpp's mixes of formats, for planning and for writing models.

The rules are those of llama.cpp (llama_tensor_get_type and tensor_type_fallback in src/llama-quant.cpp), told
anew as data, for the architectures that ggrun runs and for a quantization without an importance matrix.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ggrun.gguf.parse import TensorInfo
from ggrun.gguf.reader import Outline
from ggrun.gguf.types import FORMATS, Format
from ggrun.plan.shapes import SHAPES, Shape, Slot, hyperparameters, slots


@dataclass(frozen=True, slots=True)
class Place:
    """What the rules know of a matrix."""

    layer: int
    layers: int
    sharing: int  # query heads for one key-value head
    experts: int


Condition = Callable[[Place], bool]
Rules = tuple[tuple[Condition, str], ...]
"""The format of the first condition that is met."""


def always(place: Place) -> bool:
    """Everywhere."""
    return True


def shared(place: Place) -> bool:
    """Where four or more heads share the keys and values."""
    return place.sharing >= 4


def eight(place: Place) -> bool:
    """In models of the Mixtral kind."""
    return place.experts == 8


def some_experts(place: Place) -> bool:
    """In models with four experts or more."""
    return place.experts >= 4


def first_eighth(place: Place) -> bool:
    """In the first layers."""
    return place.layer < place.layers // 8


def first_sixteenth(place: Place) -> bool:
    """In the very first layers."""
    return place.layer < place.layers // 16


def middle(place: Place) -> bool:
    """Neither in the first nor in the last eighth of the layers."""
    return place.layers // 8 <= place.layer < 7 * place.layers // 8


def more_bits(place: Place) -> bool:
    """In the first and the last eighth of the layers, and in every third between."""
    return not middle(place) or (place.layer - place.layers // 8) % 3 == 2


def eight_and_more_bits(place: Place) -> bool:
    """Both."""
    return eight(place) and more_bits(place)


def before(n: int) -> Condition:
    """In the first `n` layers."""
    return lambda place: place.layer < n


@dataclass(frozen=True, slots=True)
class Mix:
    """A mix: its number in general.file_type, its main format, and the exceptions by role."""

    file_type: int
    main: str
    exceptions: Mapping[str, Rules] = field(default_factory=dict)
    output: str = "Q6_K"
    embedding: str | None = None
    experts: str | None = None  # of the matrices of experts
    plain: bool = False  # one format, without rules
    kind_to_70b: bool = False  # whose values are an eighth of the queries: more bits cost little

    def format(self, slot: Slot, shape: Shape) -> Format:
        """The format of a tensor, which is another one where its rows are not whole blocks."""
        if slot.role in ("ones", "noise", "rope"):
            return FORMATS["F32"]
        wanted = self.main if self.plain else self._by_rules(slot, shape)
        return _fitting(FORMATS[wanted], slot.shape[0])

    def _by_rules(self, slot: Slot, shape: Shape) -> str:
        if slot.role == "output" or (slot.role == "embedding" and shape.tied):
            return self.output if slot.shape[0] % FORMATS[self.main].block == 0 else "Q8_0"
        if slot.role == "embedding":
            return self.embedding or self.main
        if self.experts and len(slot.shape) == 3:
            return self.experts
        place = Place(slot.layer, shape.layers, shape.heads // shape.kv_heads, shape.experts)
        found = (name for condition, name in self.exceptions.get(slot.role, ()) if condition(place))
        name = next(found, self.main)
        is_70b = self.kind_to_70b and place.layers == 80 and place.sharing > 1 and not place.experts
        return "Q5_K" if is_70b and slot.role == "v" and name in ("Q3_K", "Q4_K") else name


_FALLBACKS = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
_FALLBACKS |= {"TQ1_0": "Q4_0", "TQ2_0": "Q4_0"}


def _fitting(format: Format, columns: int) -> Format:
    if columns % format.block == 0:
        return format
    # What is left of the formats with blocks of 256 are the IQ ones.
    smaller = FORMATS[_FALLBACKS.get(format.name, "IQ4_NL" if format.block == 256 else format.name)]
    return smaller if columns % smaller.block == 0 else FORMATS["F16"]


# In models with eight experts keys and values are small beside the rest.
_SMALL: dict[str, Rules] = {"k": ((eight, "Q8_0"),), "v": ((eight, "Q8_0"),)}
_BETTER_OUTPUT: Rules = ((eight, "Q5_K"),)


def _mix(
    file_type: int, main: str, output: str = "Q6_K", embedding: str | None = None, **rules: Rules
) -> Mix:
    merged = {role: _SMALL.get(role, ()) + rules.get(role, ()) for role in {*_SMALL, *rules}}
    return Mix(file_type, main, merged, output, embedding, kind_to_70b=True)


def _low(file_type: int, main: str, better: str, embedding: str, attn_output: str | None) -> Mix:
    rules: dict[str, Rules] = {
        "v": ((shared, "Q4_K"), (some_experts, "Q4_K"), (always, better)),
        "k": ((eight, "Q4_K"),),
        "down": ((first_eighth, better),),
        "attn_output": _BETTER_OUTPUT + (((always, attn_output),) if attn_output else ()),
    }
    return Mix(file_type, main, rules, "Q5_K", embedding)


def _whole(file_type: int, main: str) -> Mix:
    return Mix(file_type, main, plain=True)


_IQ4: dict[str, Any] = {
    "v": ((shared, "Q5_K"),), "down": ((first_eighth, "Q5_K"),), "attn_output": _BETTER_OUTPUT,
}  # fmt: skip
_MORE: dict[str, Any] = {"v": ((more_bits, "Q6_K"),), "down": ((more_bits, "Q6_K"),)}

MIXES: Mapping[str, Mix] = {
    "F32": _whole(0, "F32"),
    "F16": _whole(1, "F16"),
    "BF16": _whole(32, "BF16"),
    "Q4_0": _mix(2, "Q4_0"),
    "Q4_1": _mix(3, "Q4_1"),
    "Q5_0": _mix(8, "Q5_0"),
    "Q5_1": _mix(9, "Q5_1"),
    "Q8_0": _mix(7, "Q8_0", output="Q8_0"),
    "Q2_K": _mix(
        10, "Q2_K", v=((shared, "Q4_K"), (always, "Q3_K")), down=((always, "Q3_K"),),
        attn_output=(*_BETTER_OUTPUT, (always, "Q3_K")),
    ),
    "Q2_K_S": _mix(21, "Q2_K", v=((shared, "Q4_K"),), down=((first_eighth, "Q4_K"),)),
    "Q3_K_S": _mix(11, "Q3_K", attn_output=_BETTER_OUTPUT),
    "Q3_K_M": _mix(
        12, "Q3_K", v=((before(2), "Q5_K"), (always, "Q4_K")),
        down=((first_sixteenth, "Q5_K"), (always, "Q4_K")), attn_output=(*_BETTER_OUTPUT, (always, "Q4_K")),
    ),
    "Q3_K_L": _mix(
        13, "Q3_K", v=((always, "Q5_K"),), down=((always, "Q5_K"),),
        attn_output=((eight, "Q3_K"), (always, "Q5_K")),
    ),
    "Q4_K_S": _mix(
        14, "Q4_K", v=((before(4), "Q5_K"),), down=((first_eighth, "Q5_K"),), attn_output=_BETTER_OUTPUT
    ),
    "Q4_K_M": _mix(15, "Q4_K", **_MORE, attn_output=_BETTER_OUTPUT),
    "Q5_K_S": _mix(16, "Q5_K"),
    "Q5_K_M": _mix(17, "Q5_K", **_MORE),
    "Q6_K": _mix(18, "Q6_K"),
    "IQ1_S": _low(24, "IQ1_S", "Q2_K", "Q2_K", "IQ2_XXS"),
    "IQ1_M": _low(31, "IQ1_M", "Q2_K", "Q2_K", "IQ2_XXS"),
    "IQ2_XXS": _low(19, "IQ2_XXS", "Q2_K", "Q2_K", None),
    "IQ2_XS": _low(20, "IQ2_XS", "Q2_K", "Q2_K", None),
    "IQ2_S": _low(28, "IQ2_XS", "IQ3_S", "IQ3_S", "IQ3_S"),
    "IQ2_M": _low(29, "IQ2_S", "IQ3_S", "IQ3_S", "IQ3_S"),
    "IQ3_XXS": _mix(
        23, "IQ3_XXS", "Q5_K", "IQ3_S", v=((shared, "Q4_K"), (always, "IQ3_S")),
        k=((always, "IQ2_S"),), q=((always, "IQ2_S"),), down=((first_eighth, "Q4_K"), (always, "Q3_K")),
        attn_output=(*_BETTER_OUTPUT, (always, "IQ3_S")),
    ),
    "IQ3_XS": _mix(
        22, "IQ3_S", v=((shared, "Q4_K"),), k=((always, "IQ3_XXS"),), q=((always, "IQ3_XXS"),),
        gate=((middle, "IQ3_XXS"),), up=((middle, "IQ3_XXS"),), attn_output=_BETTER_OUTPUT,
    ),
    "IQ3_S": _mix(26, "IQ3_S", v=((shared, "Q4_K"),), attn_output=_BETTER_OUTPUT),
    "IQ3_M": _mix(
        27, "IQ3_S", v=((always, "Q4_K"),), down=((first_eighth, "Q4_K"), (eight_and_more_bits, "Q4_K")),
        attn_output=(*_BETTER_OUTPUT, (always, "Q4_K")),
    ),
    "IQ4_NL": _mix(25, "IQ4_NL", **_IQ4),
    "IQ4_XS": _mix(30, "IQ4_XS", **_IQ4),
    "TQ1_0": _mix(36, "TQ1_0", embedding="Q4_K"),
    "TQ2_0": _mix(37, "TQ2_0", embedding="Q4_K"),
    "MXFP4_MOE": Mix(38, "Q8_0", output="Q8_0", experts="MXFP4"),
}  # fmt: skip
"""llama.cpp's mixes, by llama-quantize's names."""

ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
_PURE = {mix.main: mix.file_type for mix in MIXES.values()}
_PURE |= {"Q8_0": 7, "Q2_K": 10, "Q3_K": 12, "IQ2_XS": 20, "IQ3_S": 26, "MXFP4": 38}  # where several have it
PURE = tuple(name for name in FORMATS if name in _PURE)
"""The formats that a whole model can be in."""


def find_mix(name: str) -> Mix:
    """The mix of this name, in any case, or of pure:FORMAT; ValueError says which there are."""
    upper = name.upper()
    if upper.startswith("PURE:"):
        if (format := upper.removeprefix("PURE:")) not in PURE:
            raise ValueError(f"no format {format[:40]!r} to fill a model with; there are {', '.join(PURE)}")
        return _whole(_PURE[format], format)
    if ALIASES.get(upper, upper) not in MIXES:
        raise ValueError(f"unknown mix {name[:40]!r}; there are {', '.join(MIXES)}, and pure:FORMAT")
    return MIXES[ALIASES.get(upper, upper)]


def outline(name: str, mix: str) -> Outline:
    """What the header of a file of this shape and mix says; ValueError, in words, for what there is not."""
    if (shape := SHAPES.get(name.lower())) is None:
        raise ValueError(f"unknown shape {name[:40]!r}; there are {', '.join(SHAPES)}")
    chosen = find_mix(mix)
    tensors = {s.name: TensorInfo(s.name, s.shape, chosen.format(s, shape), 0) for s in slots(shape)}
    return Outline(Path(f"{name}:{mix}"), hyperparameters(shape), tensors)
