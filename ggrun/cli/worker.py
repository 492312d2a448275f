"""ggrun worker: lends this machine's devices and memory to ggrun on other machines."""

import logging
import os
import re
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ggrun.cli.flags import FILE, TEXT, Command, option
from ggrun.cli.streams import say
from ggrun.cli.terminal import printable
from ggrun.errors import GgrunError, UsageError
from ggrun.rpc import PORT

if TYPE_CHECKING:
    from ggrun.plan.hardware import DeviceInfo
    from ggrun.rpc.keys import Identity
    from ggrun.rpc.worker import WorkerOptions

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])(?:i?B)?|B)", re.IGNORECASE | re.ASCII)
_LONGEST = 1000
"""Characters of a line in the log."""
_LEAST = 1 << 20
"""Bytes with which a device is of some use to a client."""
_UNITS = {unit: 1 << (10 * i) for i, unit in enumerate(("", "K", "M", "G", "T"))}


@click.command(cls=Command)
@option("-H", "--host", default="127.0.0.1", type=TEXT,
        help="Address to listen at; 0.0.0.0: all of this machine's.")  # fmt: skip
@option("-p", "--port", default=PORT, type=click.IntRange(0, 65535), help="0: a free one.")
@option("-d", "--device", "devices", type=TEXT,
        help="Devices to lend: cuda:0,cpu or cpu:0:8GB. Default: all cards, and the CPU.")  # fmt: skip
@option("-t", "--threads", type=click.IntRange(1), help="Of the CPU. Default: one for each physical core.")
@option("--models", type=FILE,
        help="A folder with GGUF files: weights that are in them need not be sent.")  # fmt: skip
@option("-c/-nc", "--cache/--no-cache", default=True, show_default=False, envvar="GGRUN_KEEP_WEIGHTS",
        help="Keep weights that were sent (the default), or only while they are used.")  # fmt: skip
@option("--cache-dir", type=FILE, help="Where: -nc needs it too.")
@option("--cache-size", default="64GB", type=TEXT, help="The most that is kept.")
@option("--max-memory", type=TEXT,
        help="The most that all clients together get, as 16GB: of the first devices first.")  # fmt: skip
@option("--max-clients", default=16, type=click.IntRange(1, 256), help="The most at a time.")
@option("-fitt", "--fit-target", "margin", default=1024, type=click.IntRange(0),
        help="MiB that stay free on each device.")  # fmt: skip
@option("--client-ca", type=FILE,
        help="Certificates (PEM): clients need one that these signed, and not the token; they are joined all "
             "the same, as the join line has this worker's fingerprint.")  # fmt: skip
@option("--announce/--no-announce", default=True, show_default=False,
        help="Let ggrun --rpc auto find this worker (mDNS), or not.")  # fmt: skip
@option("--new-token", is_flag=True,
        help="Make another join token: who joined before is locked out. A worker that is running keeps the "
             "old one until it is started again. Not for a service: each start would make one.")  # fmt: skip
@option("--insecure", count=True, help="No TLS and no token: for this machine's loopback; twice: anywhere.")
@option("--list", "list_only", is_flag=True, help="List the devices that would be lent, and end.")
def worker(**options: Any) -> int:
    """Lend this machine's devices and memory to ggrun on other machines.

    At the first start a certificate and a join token are made, and a line is printed, once, to paste on the
    machines that may use this worker.
    """
    from ggrun.cli.terminal import compile_progress
    from ggrun.rpc.keys import check_secrets, client_authorities
    from ggrun.rpc.native_log import native_lines
    from ggrun.rpc.server import check_port
    from ggrun.rpc.worker import WorkerOptions, lendable, offered

    list_only, margin = options.pop("list_only"), options.pop("margin")
    new_token, announce = options.pop("new_token"), options.pop("announce")
    cache, cache_size = options.pop("cache"), _size("--cache-size", options.pop("cache_size"))
    memory, client_ca = options.pop("max_memory"), options.pop("client_ca")
    _check_folder(options["models"])
    settings = WorkerOptions(
        **{("sessions" if name == "max_clients" else name): value for name, value in options.items()},
        cache_size=cache_size if cache else 0,
        max_memory=None if memory is None else _size("--max-memory", memory),
        client_ca=None if client_ca is None else client_authorities(client_ca),
    )
    if not list_only:
        check_port(settings.host, settings.port)  # before devices are measured, or a token is made
        if not settings.insecure:
            check_secrets(_secrets())
    with compile_progress():
        devices = offered(settings.devices, settings.threads, margin)
    free = lendable(devices, settings.max_memory)
    if list_only:
        _list(devices, free)
        return 0
    _check_room(free)
    with native_lines():
        _serve(settings, devices, new_token, announce)
    return 0


def _serve(settings: "WorkerOptions", devices: "list[DeviceInfo]", new_token: bool, announce: bool) -> None:
    from ggrun.rpc.channel import joined_address
    from ggrun.rpc.keys import identity
    from ggrun.rpc.worker import open_worker

    handler = logging.StreamHandler()
    handler.setFormatter(log_format())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    folder = _secrets()
    known = None if settings.insecure else identity(folder, new_token)
    server = open_worker(settings, devices, known)
    hint = _joining(folder, known, settings.host, server.port) if known else ""
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, lambda *_: server.stop())
    said = _announced(settings.host, server.port, known) if announce and known else None
    say(f"ggrun worker: listening at {joined_address(settings.host, server.port)}{hint}")
    server.wait()
    if said:
        said.close()
    server.close()


def _secrets() -> Path:
    from ggrun.rpc.keys import config_home

    return config_home() / "worker"


class _OneLine(logging.Formatter):
    """Lines of a log that has texts of strangers in it: none of them is two, or steers a terminal."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - Python's name
        """See logging.Formatter."""
        return printable(" ".join(super().formatMessage(record).split()))[:_LONGEST]


def log_format() -> logging.Formatter:
    """Of the worker's log."""
    return _OneLine("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S")


def _joining(folder: Path, known: "Identity", host: str, port: int) -> str:
    """Show the line to paste, once; the hint of later starts how to get one."""
    from ggrun.rpc.channel import is_loopback, joined_address
    from ggrun.rpc.keys import mark_shown, was_shown

    if was_shown(folder, known.key):
        return " (for another join line: --new-token)"
    here, every = is_loopback(host), host in ("0.0.0.0", "::")
    where = "here" if here else "on each machine that may use this worker"
    name = socket.gethostname() if every else host
    say(f"ggrun worker: paste this {where} (it is shown only now):")
    say(f"  ggrun join {joined_address(name, port)} {known.key}")
    if here:
        say(f"ggrun worker: only this machine can use it at {host}; -H 0.0.0.0 lets others")
    if every:
        say(f"ggrun worker: where {name} is not known, put in an address of this machine instead")
    mark_shown(folder, known.key)
    return ""


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


def _list(devices: "list[DeviceInfo]", free: dict[str, int]) -> None:
    print("devices:")
    for device in devices:
        memory, lent = device.memory >> 20, free[device.name] >> 20
        print(f"  {device.name}: {device.label} ({memory} MiB, {lent} MiB to lend)")


def _check_room(free: dict[str, int]) -> None:
    if max(free.values()) < _LEAST:
        none = "less than 1 MiB to lend: see -d, --max-memory and -fitt"
        raise GgrunError(f"{', '.join(free)}: {none}")


def _check_folder(models: Path | None) -> None:
    """GgrunError for a folder of models that cannot be looked into."""
    try:
        if models is not None:
            os.scandir(models).close()
    except OSError as error:
        raise GgrunError(f"--models {models}: {error.strerror}") from None


def _size(flag: str, text: str) -> int:
    if (match := _SIZE.fullmatch(text.strip())) is None:
        raise UsageError(f"{flag}: {text!r:.20} is no size: write it as 16GB")
    return int(float(match[1]) * _UNITS[(match[2] or "").upper()])
