"""The flags that say where a model's layers run, with llama.cpp's names, defaults and meanings."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ggrun.cli.flags import FILE, TEXT, option
from ggrun.cli.rpc import NAMES, rpc_options, taken_rpc, worker_devices
from ggrun.errors import GgrunError, UsageError

Command = Callable[..., Any]


def _list_devices(context: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if not wanted or context.resilient_parsing:
        return
    from ggrun.devices.local import local_devices

    hardware = _hardware(context.params.get("hardware"), context.params.get("device_memory"))
    theirs = worker_devices(taken_rpc({name: context.params.get(name) for name in NAMES}))
    print("devices:")
    for device in [*theirs, *local_devices(hardware, p2p="off")]:  # nothing will be copied
        print(f"  {device.name}: {device.label} ({device.memory >> 20} MiB, {device.free >> 20} MiB free)")
    context.exit()


_OPTIONS = [
    option("-ngl", "--gpu-layers", "--n-gpu-layers", "n_gpu_layers", default="auto", type=TEXT,
           help="The last so many layers go to cards, the output counting as one more; auto, all."),
    option("-sm", "--split-mode", default="layer",
           type=click.Choice(["none", "layer", "row", "tensor", "auto"]),
           help="none: one card; layer: runs of layers; row, also called tensor: every matrix over all; "
                "auto: layer or row, measured once on this machine (ggrun plan: as predicted)."),
    option("-ts", "--tensor-split", type=TEXT,
           help="What goes to each card, in proportion: 3,1. In mode layer, of the layers (and output)."),
    option("--row-groups", type=TEXT, metavar="N,...",
           help="In mode row: so many cards share each matrix, and the groups follow each other by layers: "
                "2,2 for two pairs of cards. Default: the cards of each machine are one."),
    option("-mg", "--main-gpu", default=0, type=click.IntRange(0), help="The card of mode none."),
    option("-dev", "--device", "dev", type=TEXT,
           help="Cards, in the order that activations pass them: cuda:1,cuda:0; they get all layers, "
                "if these fit. none: the CPU alone."),
    option("-ot", "--override-tensor", "overrides", multiple=True, type=TEXT, metavar="REGEX=DEVICE,...",
           help="Half layers with a tensor that matches go to the device (in ggrun: with all of their "
                "tensors); may be given again."),
    option("-cmoe", "--cpu-moe", is_flag=True, help="The experts of all layers stay on the CPU."),
    option("-ncmoe", "--n-cpu-moe", type=click.IntRange(0),
           help="Those of the first N layers; cards are used alike by what is left."),
    option("-ncffn", "--n-cpu-ffn", type=click.IntRange(0),
           help="The feed-forward of the first N layers stays on the CPU."),
    option("-kvo/-nkvo", "--kv-offload/--no-kv-offload", "kv_offload", default=True, show_default=False,
           help="-nkvo: keys and values stay in the host's memory."),
    option("--op-offload/--no-op-offload", default=True,
           help="Feed-forwards on the CPU are computed by a card for large batches, where that is faster and "
                "it has room: their weights come to it."),
    option("-fit", "--fit", default="on", type=click.Choice(["on", "off"]),
           help="Adjust what is left open to the memory; off: refuse nothing either."),
    option("-fitt", "--fit-target", "fit_margin", default="1024", type=TEXT, metavar="MIB,...",
           help="MiB that stay free on each device; several: on the devices as they are listed."),
    option("-fitc", "--fit-ctx", default=4096, type=click.IntRange(1),
           help="The smallest context that fitting may leave."),
    option("--plan", "plan_file", type=FILE,
           help="A plan as ggrun plan --json writes it, instead of all these."),
    option("--devices", "hardware", type=TEXT, is_eager=True,
           help='Devices with their memory and bandwidth: "2x rtx3090, cpu:64GB@50GB/s" (ggrun plan), '
                'cpu:0:2GB,cpu:1:2GB (limits to try splits with); cuda:0,cuda:0 are two logical devices of '
                'one card. Default: those of this machine.'),
    option("--device-memory", type=TEXT, metavar="SIZE,...", is_eager=True,
           help="The memory that may be taken of each card: 24GB, or one size a card."),
    option("--p2p", default="auto", type=click.Choice(["auto", "on", "off"]),
           help="Copies between cards: auto: direct where a self-test found that they come right (ggrun "
                "doctor shows it); on: direct, untested; off: through the host's memory. NCCL goes the same "
                "way."),
    option("--list-devices", is_flag=True, expose_value=False, callback=_list_devices,
           help="List the devices of this machine, and of the workers of --rpc, and end."),
]  # fmt: skip

_SUMS = [
    option("--all-reduce", default="auto", type=click.Choice(["auto", "nccl", "copy"]),
           help="How devices that share rows sum: copies, NCCL, or what a self-test found faster."),
    option("--wire", default="f32", type=click.Choice(["f32", "bf16"]),
           help="What they send each other for that; bf16 is half of it, rounds, and goes by copies."),
]  # fmt: skip

_AS_THEY_ARE = (
    "split_mode", "main_gpu", "cpu_moe", "n_cpu_moe", "n_cpu_ffn", "kv_offload", "op_offload",
    "fit_ctx", "p2p",
)  # fmt: skip


def placement_options(command: Command) -> Command:
    """Where a model's layers run; see taken."""
    command = rpc_options(command)
    for added in reversed(_OPTIONS):
        command = added(command)
    return command


def sum_options(command: Command) -> Command:
    """How devices that share rows sum what they have; see sums_taken."""
    for added in reversed(_SUMS):
        command = added(command)
    return command


def sums_taken(options: dict[str, Any]) -> dict[str, Any]:
    """Take these out of `options`, as LLM and Engine want them."""
    return {name: options.pop(name) for name in ("all_reduce", "wire")}


def taken(options: dict[str, Any]) -> dict[str, Any]:
    """Take the placement options out of `options`, as LLM and PlanOptions want them.

    Four are no fields of PlanOptions: `plan`, a Plan or None, `hardware`, a text or None, `p2p`, a text, and
    `rpc`, RpcOptions or None.
    """
    from ggrun.plan.options import parse_groups, parse_layers, parse_margin, parse_overrides, parse_ratios

    ratios, dev = options.pop("tensor_split"), options.pop("dev")
    groups = options.pop("row_groups")
    return {name: options.pop(name) for name in _AS_THEY_ARE} | {
        "n_gpu_layers": parse_layers(options.pop("n_gpu_layers")),
        "tensor_split": None if ratios is None else parse_ratios(ratios),
        "row_groups": None if groups is None else parse_groups(groups),
        "order": None if dev is None else tuple(name.strip() for name in dev.split(",")),
        "overrides": tuple(pair for text in options.pop("overrides") for pair in parse_overrides(text)),
        "fit": options.pop("fit") == "on",
        "fit_margin": parse_margin(options.pop("fit_margin")),
        "plan": _plan(options.pop("plan_file")),
        "rpc": taken_rpc(options),
        "hardware": _hardware(options.pop("hardware"), options.pop("device_memory")),
    }


def _hardware(devices: str | None, memory: str | None) -> str | None:
    """The text of --devices, with the limits of --device-memory."""
    if memory is None:
        return devices
    from ggrun.devices.local import everything
    from ggrun.plan.hardware import with_memory

    return with_memory(everything() if devices is None else devices, memory)


def _plan(file: Path | None) -> Any:
    from ggrun.plan import Plan

    if file is None:
        return None
    try:
        return Plan.from_json(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise GgrunError(f"{file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{file}: not a plan: not a text in UTF-8") from None
    except UsageError as error:
        raise UsageError(f"{file}: {error}") from None
