"""ggrun worker: lends this machine's devices and memory to ggrun on other machines."""

import logging
import re
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ggrun.cli.flags import TEXT, Command, option
from ggrun.cli.streams import say
from ggrun.errors import GgrunError, UsageError
from ggrun.rpc import PORT

if TYPE_CHECKING:
    from ggrun.plan.hardware import DeviceInfo
    from ggrun.rpc.keys import Identity
    from ggrun.rpc.worker import WorkerOptions

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)i?B?", re.IGNORECASE | re.ASCII)
_UNITS = {unit: 1 << (10 * i) for i, unit in enumerate(("", "K", "M", "G", "T"))}


@click.command(cls=Command)
@option("-H", "--host", default="127.0.0.1", type=TEXT,
        help="Address to listen at; 0.0.0.0: all of this machine's.")  # fmt: skip
@option("-p", "--port", default=PORT, type=click.IntRange(0, 65535), help="0: a free one.")
@option("-d", "--device", "devices", type=TEXT,
        help="Devices to lend: cuda:0,cpu or cpu:0:8GB. Default: all cards, and the CPU.")  # fmt: skip
@option("-t", "--threads", type=click.IntRange(1), help="Of the CPU. Default: one for each physical core.")
@option("--models", type=click.Path(path_type=Path, file_okay=False),
        help="A folder with GGUF files: weights that are in them need not be sent.")  # fmt: skip
@option("-c/-nc", "--cache/--no-cache", default=True, show_default=False, envvar="GGRUN_KEEP_WEIGHTS",
        help="Keep weights that were sent (the default), or only while they are used.")  # fmt: skip
@option("--cache-dir", type=click.Path(path_type=Path, file_okay=False), help="Where.")
@option("--cache-size", default="64GB", type=TEXT, help="The most that is kept.")
@option("--max-memory", type=TEXT,
        help="The most that all clients together get, as 16GB: of the first devices first.")  # fmt: skip
@option("--max-clients", default=16, type=click.IntRange(1, 256), help="The most at a time.")
@option("-fitt", "--fit-target", "margin", default=1024, type=click.IntRange(0),
        help="MiB that stay free on each device.")  # fmt: skip
@option("--client-ca", type=click.Path(path_type=Path, dir_okay=False),
        help="Certificates (PEM): clients need one that these signed, and no token.")  # fmt: skip
@option("--announce/--no-announce", default=True, show_default=False,
        help="Let ggrun --rpc auto find this worker (mDNS), or not.")  # fmt: skip
@option("--new-token", is_flag=True, help="Make another join token: who joined before is locked out.")
@option("--insecure", count=True, help="No TLS and no token: for this machine's loopback; twice: anywhere.")
@option("--list", "list_only", is_flag=True, help="List the devices that would be lent, and end.")
def worker(**options: Any) -> int:
    """Lend this machine's devices and memory to ggrun on other machines.

    At the first start a certificate and a join token are made, and a line is printed to paste on the machines
    that may use this worker.
    """
    from ggrun.cli.terminal import compile_progress
    from ggrun.rpc.native_log import native_lines
    from ggrun.rpc.worker import WorkerOptions, offered

    list_only, margin = options.pop("list_only"), options.pop("margin")
    new_token, announce = options.pop("new_token"), options.pop("announce")
    cache, cache_size = options.pop("cache"), _size("--cache-size", options.pop("cache_size"))
    memory, client_ca = options.pop("max_memory"), options.pop("client_ca")
    settings = WorkerOptions(
        **{("sessions" if name == "max_clients" else name): value for name, value in options.items()},
        cache_size=cache_size if cache else 0,
        max_memory=None if memory is None else _size("--max-memory", memory),
        client_ca=None if client_ca is None else _read(client_ca),
    )
    with compile_progress():
        devices = offered(settings.devices, settings.threads, margin)
    if list_only:
        _list(devices)
        return 0
    with native_lines():
        _serve(settings, devices, new_token, announce)
    return 0


def _serve(settings: "WorkerOptions", devices: "list[DeviceInfo]", new_token: bool, announce: bool) -> None:
    from ggrun.rpc.channel import joined_address
    from ggrun.rpc.keys import config_home, identity
    from ggrun.rpc.worker import open_worker

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S")
    known, fresh = (None, False) if settings.insecure else identity(config_home() / "worker", new_token)
    server = open_worker(settings, devices, known)
    if known and fresh:
        say("ggrun worker: paste this on each machine that may use this worker (it is shown only now):")
        say(f"  ggrun join {joined_address(_name(settings.host), server.port)} {known.key}")
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, lambda *_: server.stop())
    said = _announced(settings.host, server.port, known) if announce and known else None
    say(f"ggrun worker: listening at {joined_address(settings.host, server.port)}")
    server.wait()
    if said:
        said.close()
    server.close()


def _announced(host: str, port: int, known: "Identity") -> Any:
    """A worker that only this machine can reach is announced to nobody."""
    from ggrun.rpc.channel import is_loopback
    from ggrun.rpc.discovery import Announcement

    if is_loopback(host):
        return None
    try:
        return Announcement(host, port, known.key.fingerprint)
    except GgrunError as error:
        say(f"ggrun worker: {error}")
        return None


def _name(host: str) -> str:
    """How others call this machine."""
    return socket.gethostname() if host in ("0.0.0.0", "::") else host


def _list(devices: "list[DeviceInfo]") -> None:
    print("devices:")
    for device in devices:
        print(f"  {device.name}: {device.label} ({device.memory >> 20} MiB, {device.free >> 20} MiB to lend)")


def _size(flag: str, text: str) -> int:
    if (match := _SIZE.fullmatch(text.strip())) is None:
        raise UsageError(f"{flag} {text!r:.20}: write it as 16GB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise GgrunError(f"{file}: {error.strerror}") from None
