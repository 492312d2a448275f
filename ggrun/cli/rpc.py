"""The flags for workers on other machines."""

from collections.abc import Callable
from typing import Any

import click

from ggrun.cli.flags import TEXT, option
from ggrun.cli.streams import complain
from ggrun.cli.terminal import ShownProgress
from ggrun.errors import UsageError

Command = Callable[..., Any]

_OPTIONS = [
    option("--rpc", type=TEXT, metavar="HOST:PORT,...",
           help="Workers whose devices take part (ggrun worker there, ggrun join here); auto: those that "
                "were joined, are found in this network and can be used."),
    option("--rpc-form", default="f32", type=click.Choice(["f32", "f16", "bf16"]),
           help="Activations on the wire; with f16 and bf16 half the bytes, and other last digits."),
    option("--rpc-cert", type=TEXT, metavar="CERTIFICATE,KEY",
           help="Files (PEM), for workers with --client-ca."),
    option("--insecure", count=True,
           help="Workers without TLS, on this machine; twice: anywhere."),
]  # fmt: skip


def rpc_options(command: Command) -> Command:
    """Which workers, and how they are spoken to; see taken_rpc."""
    for added in reversed(_OPTIONS):
        command = added(command)
    return command


def taken_rpc(options: dict[str, Any]) -> Any:
    """Take these options out of `options`: RpcOptions, or None without --rpc."""
    addresses, form = options.pop("rpc"), options.pop("rpc_form")
    pair, insecure = options.pop("rpc_cert"), options.pop("insecure")
    if addresses is None:
        return None
    from ggrun.rpc.placed import RpcOptions

    return RpcOptions(addresses, insecure, form, _pair(pair), ShownProgress(), complain)


def _pair(text: str | None) -> tuple[str, str] | None:
    if text is None:
        return None
    certificate, comma, key = text.partition(",")
    if not comma:
        raise UsageError("--rpc-cert: give two files, as client.pem,client_key.pem")
    return certificate.strip(), key.strip()
