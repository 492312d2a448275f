"""ggrun plan: what would run where, whether it fits, and how fast it will be; nothing is loaded."""

import os
from typing import TYPE_CHECKING, Any

import click

from ggrun.cli.flags import TEXT, ModelCommand, option, path_of
from ggrun.cli.placement import placement_options, taken
from ggrun.cli.rpc import worker_devices
from ggrun.errors import UsageError

if TYPE_CHECKING:
    from ggrun.plan.facts import ModelFacts
    from ggrun.plan.planned import Planned
    from ggrun.plan.report import DoesNotFit

_CACHE_TYPES = click.Choice(["f16", "f32", "bf16", "q8_0"])
_DEFAULT_MIX = "Q4_K_M"
_DOES_NOT_FIT = 3


@click.command(cls=ModelCommand)
@click.argument("model", required=False, type=TEXT)
@option("-c", "--ctx-size", "n_ctx", default=0, type=click.IntRange(0),
        help="Context; 0: the model's, if it fits.")  # fmt: skip
@option("-b", "--batch-size", "n_batch", default=2048, type=click.IntRange(1), help="Most tokens of a batch.")
@option("-ub", "--ubatch-size", "n_ubatch", default=512, type=click.IntRange(1),
        help="Tokens computed together.")  # fmt: skip
@option("-t", "--threads", type=click.IntRange(1), help="Default: one for each physical core.")
@option("-ctk", "--cache-type-k", default="f16", type=_CACHE_TYPES, help="Keys in the KV cache.")
@option("-ctv", "--cache-type-v", default="f16", type=_CACHE_TYPES, help="Values in the KV cache.")
@option("--json", "as_json", is_flag=True, help="Write the plan itself, for --plan.")
@placement_options
def plan(**options: Any) -> int:
    """Say what of a MODEL would run where, whether it fits, and how fast it will be.

    MODEL is a GGUF file, of which the header is enough, or a shape and a mix, as llama-3-70b:Q4_K_M; the demo
    model, if it is not given. --devices plans for a machine that is not here. Exit status 3: it does not fit.
    """
    from ggrun.plan.cuts import check_cuts
    from ggrun.plan.facts import ModelFacts

    outline = _outline(options.pop("model"))
    as_json = options.pop("as_json")
    planned = _planned(ModelFacts.from_outline(outline), options)
    check_cuts(planned.plan, outline, planned.facts.config)
    if not as_json:
        from ggrun.cli.plan_view import draw

        print(draw(planned))
    problem = _shortage(planned)
    if as_json and (problem is None or not planned.options.fit):
        print(planned.plan.to_json())
    if problem:
        problem.exit_status = _DOES_NOT_FIT  # an answer here, and not a failure as where a model is loaded
        raise problem
    return 0


def _shortage(planned: "Planned") -> "DoesNotFit | None":
    """Why it does not fit, if it does not."""
    from ggrun.plan.report import DoesNotFit, require_fit

    try:
        require_fit(planned)
    except DoesNotFit as error:
        return error
    return None


def _outline(model: str | None) -> Any:
    """The header of a file, or what that of a shape would be."""
    from ggrun.bundled import demo_model
    from ggrun.gguf import Outline

    if model is None:
        return Outline.read(demo_model())
    try:
        path_of(model)
    except ValueError as error:
        raise UsageError(str(error)) from None
    name, colon, mix = model.partition(":")
    if os.path.exists(model) or not (colon or _is_shape(name)):
        return Outline.read(model)
    from ggrun.plan.mixes import outline

    try:
        return outline(name, mix or _DEFAULT_MIX)
    except ValueError as error:
        raise UsageError(f"{model}: no such file, and {error}") from None


def _is_shape(name: str) -> bool:
    from ggrun.plan.shapes import SHAPES

    return name.lower() in SHAPES


def _is_elsewhere(hardware: str) -> bool:
    """Whether a text says all of its devices: then none of this machine's is meant."""
    from ggrun.plan.hardware import parse_devices

    try:
        parse_devices(hardware)
    except UsageError:
        return False
    return True


def _planned(facts: "ModelFacts", options: dict[str, Any]) -> "Planned":
    from ggrun.cli.terminal import compile_progress
    from ggrun.devices.local import (
        devices_of,
        here_is_known,
        local_cpu,
        local_devices,
        planned_as_written,
        pretends,
        refuse_unusable,
        shared_out,
    )  # fmt: skip
    from ggrun.plan.options import PlanOptions
    from ggrun.plan.planner import make_plan

    threads, n_batch = options.pop("threads"), options.pop("n_batch")
    placement = taken(options)
    hardware, own, p2p, rpc = (placement.pop(name) for name in ("hardware", "plan", "p2p", "rpc"))
    options["n_ubatch"] = min(options["n_ubatch"], n_batch)
    wishes = PlanOptions(**options, **placement)
    workers = worker_devices(rpc)  # what is wrong with one is said at once
    # Speeds of this machine are only measured where they count.
    if not here_is_known(threads) and (hardware is None or not _is_elsewhere(hardware)):
        with compile_progress():
            local_cpu(threads, measure=True)
    own_here = own is not None and hardware is None
    here = devices_of(own, threads, p2p) if own_here else local_devices(hardware, threads, p2p)
    if hardware is None:
        refuse_unusable(wishes, here)
    devices = [*workers, *here]
    if hardware is None or pretends(devices):
        devices = shared_out(devices, wishes)
    return (
        make_plan(facts, devices, wishes) if own is None else planned_as_written(facts, devices, wishes, own)
    )
