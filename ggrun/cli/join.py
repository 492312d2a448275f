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

    A KEY that is not given is read from standard input, or asked for; there it may be the whole line that the
    worker printed.

    The key is kept in a file that only you can read. It has the worker's token, and the fingerprint of its
    certificate: nobody else can pretend to be it.
    """
    from ggrun.rpc import keys
    from ggrun.rpc.channel import split_address

    split_address(address)
    known = keys.Key.parse(_key_of(key or _asked(), address))
    file = keys.join(address, known)
    say(f"ggrun join: {address} is kept in {file}; use it with --rpc {address}")
    return 0


def _key_of(text: str, address: str) -> str:
    """The key in what was pasted: all of it, or the last word of a join line, which must be this worker's."""
    words = text.split()
    if words[:2] != ["ggrun", "join"] or len(words) != 4:
        return text
    if words[2].lower() != address.lower():
        raise UsageError(
            f"that is the line of {words[2]!r:.60}, and not of {address}: give that address, or only the "
            "key, which is the line's last word"
        )
    return words[3]


def _asked() -> str:
    if not sys.stdin.isatty():
        text = read_stdin().strip()
    else:
        try:
            text = click.prompt("key", hide_input=True, err=True)
        except click.Abort:  # Ctrl+D; Ctrl+C has ended the process
            text = ""
    if not text:
        raise UsageError("no key: give it after the address, or on standard input")
    return text
