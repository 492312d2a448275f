"""ggrun join: remembers the key of a worker, so that --rpc can use it."""

import click

from ggrun.cli.flags import TEXT, Command
from ggrun.cli.streams import say


@click.command(cls=Command)
@click.argument("address", type=TEXT)
@click.argument("key", type=TEXT, required=False)
def join(address: str, key: str | None) -> int:
    """Remember the KEY of the worker at ADDRESS (host:port), as it printed both. It asks for a KEY not given.

    The key is kept in a file that only you can read. It has the worker's token, and the fingerprint of its
    certificate: nobody else can pretend to be it.
    """
    from ggrun.rpc import keys
    from ggrun.rpc.channel import split_address

    split_address(address)
    known = keys.Key.parse(key or click.prompt("key", hide_input=True, err=True))
    file = keys.join(address, known)
    say(f"ggrun join: {address} is kept in {file}; use it with --rpc {address}")
    return 0
