"""What a plan must keep to beyond its own sums: where this model's tensors can be cut."""

from collections.abc import Iterator

from ggrun.arch.config import Config
from ggrun.errors import UsageError
from ggrun.gguf import Declared, Outline
from ggrun.plan import Plan, Stage


def check_cuts(plan: Plan, model: Outline, config: Config) -> None:
    """UsageError when members share a matrix whose format cannot be cut there: inside of a block.

    Rows can be cut anywhere, so only matrices whose columns are shared count: after heads and after the
    feed-forward's activation.
    """
    for stage in plan.stages:
        for tensor, column in _cuts(stage, model, config):
            if column % tensor.format.block:
                raise UsageError(
                    f"the plan cuts {tensor.name} at column {column}, inside a block of "
                    f"{tensor.format.block} ({tensor.format.name}): move the cut, or give one member all"
                )


def _cuts(stage: Stage, model: Outline, config: Config) -> Iterator[tuple[Declared, int]]:
    """The tensors of a stage that are cut, each with a column where one member's share ends."""
    for half in range(*stage.halves):
        names = ("ffn_down", "ffn_down_exps") if half % 2 else ("attn_output",)
        tensors = [model.tensors.get(f"blk.{half // 2}.{name}.weight") for name in names]
        for member in stage.members:
            column = member.ff[1] if half % 2 else member.heads[1] * config.value_dim
            yield from ((tensor, column) for tensor in tensors if tensor and column < tensor.shape[0])
