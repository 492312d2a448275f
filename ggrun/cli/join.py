"""ggrun join: remembers the key of a worker, so that --rpc can use it."""

import sys

import click

from ggrun.cli.flags import TEXT, Command
from ggrun.cli.streams import read_stdin, say
from ggrun.errors import UsageError


@click.command(cls=Command)
@click.argument("address", type=TEXT)
@click.argument("key", type=TEXT, required=False)
def join(address: str, key: str | None) -> int:
    """Remember the KEY of the worker at ADDRESS (host:port), as it printed both.

    A KEY that is not given is read from standard input, or asked for.

    The key is kept in a file that only you can read. It has the worker's token, and the fingerprint of its
    certificate: nobody else can pretend to be it.
    """
    from ggrun.rpc import keys
    from ggrun.rpc.channel import split_address

    split_address(address)
    known = keys.Key.parse(key or _asked())
    file = keys.join(address, known)
    say(f"ggrun join: {address} is kept in {file}; use it with --rpc {address}")
    return 0


def _asked() -> str:
    if sys.stdin.isatty():
        return str(click.prompt("key", hide_input=True, err=True))
    if not (text := read_stdin().strip()):
        raise UsageError("no key: give it after the address, or on standard input")
    return text
