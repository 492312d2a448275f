"""A plan that was made, and what is known of it before anything is loaded."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from ggrun.plan import Plan
from ggrun.plan.choice import Choice
from ggrun.plan.cost import Speed, predict
from ggrun.plan.facts import PAGE, ModelFacts
from ggrun.plan.hardware import DeviceInfo
from ggrun.plan.offload import NONE, Offloads, offloads
from ggrun.plan.options import PlanOptions
from ggrun.plan.usage import Sizes, Use, plan_use

_LARGEST_CONTEXT = 1 << 24  # looked for: sixteen million positions


@dataclass(frozen=True)
class Settled:
    """What the planner chose of what the user left open, beside the layout.

    cpu_ffn   feed-forward halves that it left to the CPU
    ratios    of row stages, of all cards
    first     the first item on cards, where -ts says how they share what is behind it; None: no such thing
    """

    cpu_ffn: int = 0
    ratios: tuple[float, ...] = ()
    first: int | None = None


@dataclass(frozen=True)
class Planned:
    """A plan, and what is known of it before anything is loaded."""

    facts: ModelFacts
    options: PlanOptions
    devices: tuple[DeviceInfo, ...]
    choice: Choice
    plan: Plan
    sizes: Sizes
    settled: Settled
    own: bool = False  # the user wrote the plan: flags only said the sizes
    tried: bool = True  # False: nothing that is tried fits, and this is by chance what it is

    @cached_property
    def uses(self) -> dict[str, Use]:
        """The bytes that are taken of each device."""
        return plan_use(self.facts, self.plan, self.sizes, len(self.devices) - 1)

    @cached_property
    def limits(self) -> dict[str, int]:
        """The bytes that may be taken of each."""
        return limits(self.devices, self.options)

    @cached_property
    def offloads(self) -> Offloads:
        """What cards compute of the CPU's feed-forwards where a batch is large."""
        if not self.options.op_offload or not self.fits:
            return NONE
        room = {name: self.limits[name] - use.total for name, use in self.uses.items()}
        return offloads(self.facts, self.plan, self.sizes, self._by_name, room)

    @cached_property
    def speed(self) -> Speed:
        """What is predicted."""
        offloaded = {i: offload.card for i, offload in self.offloads.items()}
        return predict(self.facts, self.plan, self.sizes, self._by_name, offloaded)

    @property
    def _by_name(self) -> dict[str, DeviceInfo]:
        return {device.name: device for device in self.devices}

    @property
    def over(self) -> dict[str, int]:
        """The bytes that devices lack."""
        return {
            name: use.total - n for name, use in self.uses.items() if use.total > (n := self.limits[name])
        }

    @property
    def fits(self) -> bool:
        """Whether it does."""
        return self.tried and not self.over

    @cached_property
    def context_as_laid_out(self) -> int:
        """The most positions that there is memory for, with all layers where they are; 0: for none."""
        found = PAGE * most_pages(lambda pages: self._holds(pages * PAGE))
        # A whole page more may bring a larger micro-batch with it.
        return max(found, self.sizes.n_ctx if self.fits else 0)

    def _holds(self, n_ctx: int) -> bool:
        sizes = replace(self.sizes, n_ctx=n_ctx)
        uses = plan_use(self.facts, self.plan, sizes, len(self.devices) - 1)
        return all(use.total <= self.limits[name] for name, use in uses.items())


def limits(devices: Sequence[DeviceInfo], options: PlanOptions) -> dict[str, int]:
    """The bytes of each device that a plan may take. The CPU is one even where it is not listed."""
    margins = options.margins(len(devices))
    found = {device.name: device.usable(margin) for device, margin in zip(devices, margins, strict=True)}
    return {"cpu": 0, **found}


def most_pages(holds: Callable[[int], bool | None], low: int = 0) -> int:
    """The most pages for which something holds that holds for `low`."""
    high = _LARGEST_CONTEXT // PAGE
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low
