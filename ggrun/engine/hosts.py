"""Other machines, as the engine sees them: who runs stages there is not its business."""

from collections.abc import Sequence
from itertools import groupby
from typing import Protocol

from ggrun.devices.base import Limits
from ggrun.engine.runner import CacheSpec
from ggrun.engine.stage import Hop
from ggrun.errors import GgrunError
from ggrun.gguf import GGUF
from ggrun.plan import Plan, host_of


class HostLost(GgrunError):
    """Another machine does not answer any more; `host` is its name in the plan."""

    def __init__(self, host: str, why: str) -> None:
        super().__init__(f"{host}: {why}")
        self.host = host


class Host(Protocol):
    """A machine that runs parts of a plan. HostLost from any of it when it is gone."""

    def begin(
        self, plan: Plan, parts: Sequence[range], model: GGUF, cache: CacheSpec, limits: Limits, slots: int
    ) -> Sequence[Hop]:
        """Let it load runs of stages; does not wait."""

    def finish(self) -> set[str]:
        """Wait until all is loaded: the names of the tensors that were taken."""

    def synchronize(self) -> None:
        """Wait until all that was enqueued is done; raises the first error."""

    def abandon(self) -> None:
        """Begin anew after an error; what is still under way there does no harm."""

    def interrupt(self) -> None:
        """Make what it computes end with Interrupted, now and until `resume`; from any thread."""

    def resume(self) -> None:
        """Let it compute again."""


def hops(plan: Plan) -> list[tuple[str, range]]:
    """The plan's stages as batches pass them: each of this machine ("") alone, those of another in runs."""
    found: list[tuple[str, range]] = []
    for host, run in groupby(range(len(plan.stages)), lambda i: host_of(plan.stages[i].members[0].device)):
        numbers = list(run)
        if host:
            found.append((host, range(numbers[0], numbers[-1] + 1)))
        else:
            found += [("", range(i, i + 1)) for i in numbers]
    return found
