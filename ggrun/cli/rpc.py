"""The flags for workers on other machines."""

import sys
from collections.abc import Callable
from typing import Any

import click

from ggrun.cli.flags import TEXT, option
from ggrun.cli.streams import complain, say
from ggrun.errors import UsageError

Command = Callable[..., Any]

_OPTIONS = [
    option("--rpc", type=TEXT, metavar="HOST:PORT,...",
           help="Workers whose devices take part (ggrun worker there, ggrun join here); auto: those that "
                "were joined and are found in this network."),
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

    return RpcOptions(addresses, insecure, form, _pair(pair), _Progress(), complain)


def _pair(text: str | None) -> tuple[str, str] | None:
    if text is None:
        return None
    certificate, comma, key = text.partition(",")
    if not comma:
        raise UsageError("--rpc-cert: give two files, as client.pem,client_key.pem")
    return certificate.strip(), key.strip()


class _Progress:
    """Shows what is hashed or sent: in a terminal as it goes on, else one line when it begins."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def __call__(self, what: str, done: int, total: int) -> None:
        figures = f"{done >> 20} of {total >> 20} MiB"
        if sys.stderr.isatty():
            say(f"\r{what}: {figures}", end="\n" if done >= total else "")
        elif what not in self._said:
            self._said.add(what)
            say(f"{what}: {total >> 20} MiB")
