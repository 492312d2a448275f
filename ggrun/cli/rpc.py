"""The flags for workers on other machines."""

from collections.abc import Callable
from typing import Any

import click

from ggrun.cli.flags import TEXT, option
from ggrun.cli.streams import complain
from ggrun.cli.terminal import ShownProgress
from ggrun.errors import UsageError

Command = Callable[..., Any]

# Eager: --list-devices is answered while options are read, and needs these.
_OPTIONS = [
    option("--rpc", type=TEXT, is_eager=True, metavar="HOST:PORT,...",
           help="Workers whose devices take part (ggrun worker there, ggrun join here); auto: those that "
                "were joined, are found in this network and can be used."),
    option("--rpc-form", default="f32", is_eager=True, type=click.Choice(["f32", "f16", "bf16"]),
           help="Activations on the wire; with f16 and bf16 half the bytes, and other last digits."),
    option("--rpc-cert", type=TEXT, is_eager=True, metavar="CERTIFICATE,KEY",
           help="Files (PEM), for workers with --client-ca."),
    option("--insecure", count=True, is_eager=True,
           help="Workers without TLS, on this machine; twice: anywhere."),
]  # fmt: skip


NAMES = ("rpc", "rpc_form", "rpc_cert", "insecure")
"""Of what taken_rpc takes."""


def rpc_options(command: Command) -> Command:
    """Which workers, and how they are spoken to; see taken_rpc."""
    for added in reversed(_OPTIONS):
        command = added(command)
    return command


def taken_rpc(options: dict[str, Any]) -> Any:
    """Take these options out of `options`: RpcOptions, or None without --rpc."""
    addresses, form, pair, insecure = (options.pop(name) for name in NAMES)
    if addresses is None:
        return None
    from ggrun.rpc.placed import RpcOptions

    return RpcOptions(addresses, insecure, form, _pair(pair), ShownProgress(), complain)


def worker_devices(rpc: Any) -> list[Any]:
    """The devices of workers, asked and measured now; of RpcOptions, or None."""
    if rpc is None:
        return []
    workers = rpc.connect()
    workers.close()
    return list(workers.devices)


def _pair(text: str | None) -> tuple[str, str] | None:
    if text is None:
        return None
    certificate, comma, key = text.partition(",")
    if not comma:
        raise UsageError("--rpc-cert: give two files, as client.pem,client_key.pem")
    return certificate.strip(), key.strip()
