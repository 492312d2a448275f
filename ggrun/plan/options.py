"""What a user says of a plan; what he leaves open the planner fills."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from typing import Any

from ggrun.errors import UsageError

SPLIT_MODES = ("none", "layer", "row", "tensor", "auto")
_ROWS = ("row", "tensor")
CACHE_TYPES = ("f16", "f32", "bf16", "q8_0")
_LEAST_RATIO, _MOST_RATIO = 1e-6, 1e12
FIT_CONTEXT = 4096
"""The smallest context that fitting to memory may leave (llama.cpp's -fitc)."""
FIT_MARGIN = 1024
"""MiB that stay free on a device of which nothing else is said (llama.cpp's -fitt)."""


@dataclass(frozen=True)
class PlanOptions:
    """llama.cpp's placement flags. None: the planner chooses.

    split_mode       none: one device; layer: runs of layers; row, or tensor: every matrix over all devices;
                     auto: layer or row, whichever is predicted to be faster
    n_gpu_layers     the LAST so many layers go to cards, the output counting as one more; "all"; "auto"
    tensor_split     what goes to each card, in proportion: layers in mode layer, rows in mode row
    row_groups       in mode row: so many cards share each matrix, and the groups follow each other by layers;
                     None: all cards of a machine are one
    main_gpu         the card of mode none
    order            names of cards, in the order that activations pass them, and get all where it fits;
                     None: all, as they are listed, and the CPU gets what it computes sooner
    overrides        (regex, device): half layers with a tensor that matches go there; the first match counts
    cpu_moe          the experts of all layers stay on the CPU
    n_cpu_moe, n_cpu_ffn
                     the experts, or the feed-forward, of the FIRST so many layers stay on the CPU
    kv_offload       False: the KV cache stays in the host's memory
    op_offload       False: cards compute no feed-forwards of the CPU where a batch is large
    n_ctx            positions; 0: the model's, or as many as fit, but fit_ctx at least
    fit              False: nothing is adjusted to the memory, and nothing refused
    fit_margin       MiB that stay free on every device that others use too; several: on each of the devices
                     as they are listed, FIT_MARGIN on those behind
    """

    split_mode: str = "layer"
    n_gpu_layers: int | str = "auto"
    tensor_split: Sequence[float] | None = None
    main_gpu: int = 0
    order: Sequence[str] | None = None
    overrides: Sequence[tuple[str, str]] = ()
    cpu_moe: bool = False
    n_cpu_moe: int | None = None
    n_cpu_ffn: int | None = None
    kv_offload: bool = True
    op_offload: bool = True
    n_ctx: int = 0
    n_ubatch: int = 512
    sequences: int = 1
    cache_type_k: str = "f16"
    cache_type_v: str = "f16"
    fit: bool = True
    fit_margin: int | Sequence[int] = FIT_MARGIN
    fit_ctx: int = FIT_CONTEXT
    row_groups: Sequence[int] | None = None

    def __post_init__(self) -> None:
        """UsageError for what no model could take."""
        self._check_kinds()
        for f in fields(self):  # numpy's numbers would wrap around
            if _whole(value := getattr(self, f.name)):
                object.__setattr__(self, f.name, int(value))
        if not isinstance(margins := self.fit_margin, int):
            several = tuple(int(margin) for margin in margins)
            object.__setattr__(self, "fit_margin", several[0] if len(several) == 1 else several)
        if self.split_mode not in SPLIT_MODES:
            raise UsageError(
                f"split mode {self.split_mode!r:.40} is unknown: there are {', '.join(SPLIT_MODES)}"
            )
        for kind in (self.cache_type_k, self.cache_type_v):
            if kind not in CACHE_TYPES:
                raise UsageError(f"cache type {kind!r:.40} is unknown: there are {', '.join(CACHE_TYPES)}")
        if isinstance(self.n_gpu_layers, str) and self.n_gpu_layers not in ("auto", "all"):
            raise UsageError(f"-ngl {self.n_gpu_layers!r:.40}: a number, auto or all")
        for name, number, least in self._numbers():
            if number is not None and number < least:
                raise UsageError(f"{name} is {number}: it must be {least} or more")
        if self.n_ctx >= 1 << 31:
            raise UsageError(f"n_ctx {self.n_ctx}: no context is larger than {(1 << 31) - 1}")
        if self.row_groups is not None:
            if not self.row_groups or any(size < 1 for size in self.row_groups):
                raise UsageError("--row-groups: how many cards each group has, as 2,2")
            if self.split_mode not in (*_ROWS, "auto"):
                raise UsageError(f"--row-groups is for -sm row, and this is -sm {self.split_mode}")
        ratios = self.tensor_split
        if ratios is not None and not (any(ratios) and all(_ratio(r) for r in ratios)):
            raise UsageError("-ts: numbers of 1e-6 to 1e12, or 0, one for each device, not all of them 0")

    def _check_kinds(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if f.type in (int, int | None) and not _whole(value, none=f.type is not int):
                raise UsageError(f"{f.name} is {value!r:.40}: it must be a whole number")
            if f.type is bool and not isinstance(value, bool):
                raise UsageError(f"{f.name} is {value!r:.40}: it must be True or False")
        for name in ("split_mode", "cache_type_k", "cache_type_v"):
            if not isinstance(value := getattr(self, name), str):
                raise UsageError(f"{name} is {value!r:.40}: it must be text")
        if not isinstance(self.n_gpu_layers, str) and not _whole(self.n_gpu_layers):
            raise UsageError(f"n_gpu_layers is {self.n_gpu_layers!r:.40}: a number, auto or all")
        margins: Any = self.fit_margin
        if not _whole(margins) and not (_listed(margins) and margins and all(map(_whole, margins))):
            raise UsageError(f"fit_margin is {margins!r:.40}: it must be a whole number, or a list of them")
        for name, kinds, what in (
            ("tensor_split", Real, "numbers"), ("order", str, "names of devices"),
            ("row_groups", Integral, "whole numbers"),
            ("overrides", tuple | list, "pairs of a regular expression and a device"),
        ):  # fmt: skip
            given: Any = getattr(self, name)
            if given is not None and not (_listed(given) and all(isinstance(v, kinds) for v in given)):
                raise UsageError(f"{name} is {given!r:.40}: it must be a list of {what}")
        if not all(len(pair) == 2 and all(isinstance(v, str) for v in pair) for pair in self.overrides):
            raise UsageError("overrides: each must be a regular expression and a device")

    def _numbers(self) -> list[tuple[str, int | None, int]]:
        layers = None if isinstance(self.n_gpu_layers, str) else self.n_gpu_layers
        margins = self.fit_margin
        return [
            ("n_ctx (-c)", self.n_ctx, 0),
            ("n_ubatch (-ub)", self.n_ubatch, 1),
            ("n_gpu_layers (-ngl)", layers, 0),
            ("main_gpu (-mg)", self.main_gpu, 0),
            ("n_cpu_moe (-ncmoe)", self.n_cpu_moe, 0),
            ("n_cpu_ffn (-ncffn)", self.n_cpu_ffn, 0),
            ("fit_margin (-fitt)", margins if isinstance(margins, int) else min(margins), 0),
            ("fit_ctx (-fitc)", self.fit_ctx, 1),
        ]

    def margins(self, devices: int) -> list[int]:
        """The bytes that stay free on each of so many devices; UsageError where more are told."""
        given = self.fit_margin
        if isinstance(given, int):
            return [given << 20] * devices
        if len(given) > devices:
            raise UsageError(f"-fitt gives {len(given)} numbers for {devices} devices")
        return [mib << 20 for mib in (*given, *[FIT_MARGIN] * (devices - len(given)))]

    def in_mode(self, split_mode: str) -> "PlanOptions":
        """The same in another mode; groups are of mode row alone."""
        groups = self.row_groups if split_mode in _ROWS else None
        return replace(self, split_mode=split_mode, row_groups=groups)

    @property
    def rows(self) -> bool:
        """Whether cards share each matrix."""
        return self.split_mode in _ROWS

    @property
    def cpu_halves_open(self) -> bool:
        """Whether the planner may leave feed-forward halves of its own choice to the CPU."""
        said = (self.n_cpu_moe, self.n_cpu_ffn, self.tensor_split)
        return self.n_gpu_layers == "auto" and not self.cpu_moe and said == (None, None, None)


def _ratio(value: float) -> bool:
    return value == 0 or _LEAST_RATIO <= value <= _MOST_RATIO


def _whole(value: object, none: bool = False) -> bool:
    return (value is None and none) or (isinstance(value, Integral) and not isinstance(value, bool))


def _listed(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def parse_ratios(text: str) -> tuple[float, ...]:
    """-ts 3,1 (a slash will do too); UsageError."""
    try:
        return tuple(float(part) for part in re.split("[,/]", text.strip()))
    except ValueError:
        raise UsageError(f"-ts {text!r:.60}: numbers with commas between, as 3,1") from None


def parse_groups(text: str) -> tuple[int, ...]:
    """--row-groups 2,2; UsageError."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--row-groups {text!r:.60}: numbers of cards with commas between, as 2,2") from None


def parse_margin(text: str) -> int | tuple[int, ...]:
    """-fitt 1024, or 1024,512 (a slash will do too); UsageError."""
    try:
        margins = tuple(int(part) for part in re.split("[,/]", text.strip()))
    except ValueError:
        raise UsageError(f"-fitt {text!r:.60}: numbers of MiB with commas between, as 1024,512") from None
    return margins[0] if len(margins) == 1 else margins


def parse_overrides(text: str) -> tuple[tuple[str, str], ...]:
    """-ot REGEX=DEVICE,REGEX=DEVICE; UsageError. The last = of each parts it."""
    items = [""]
    for piece in text.split(","):
        if "=" in items[-1]:
            items.append(piece)
        else:  # a comma before any = is of the regex, as in {1,2}
            items[-1] += ("," if items[-1] else "") + piece
    return tuple(_override(item) for item in items)


def _override(item: str) -> tuple[str, str]:
    pattern, equals, device = item.rpartition("=")
    if not (equals and pattern.strip() and device.strip()):
        raise UsageError(f"-ot {item!r:.60}: write it as REGEX=DEVICE")
    return pattern.strip(), device.strip()


def parse_layers(text: str) -> int | str:
    """-ngl N, auto or all; a negative number is llama.cpp's way to say auto (-1) and all (-2)."""
    if text in ("auto", "all"):
        return text
    try:
        number = int(text)
    except ValueError:
        raise UsageError(f"-ngl {text!r:.40}: a number, auto or all") from None
    return number if number >= 0 else "auto" if number == -1 else "all"
