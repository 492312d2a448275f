"""The group of commands, and what becomes of whatever goes wrong in one."""

import os
import sys
from importlib import import_module
from typing import Any

import click

from ggrun import __version__
from ggrun.cli.interrupt import interruptible
from ggrun.cli.streams import complain, usable_streams
from ggrun.errors import GgrunError

COMMANDS = {
    "run": "Generate text after a prompt.",
    "plan": "Say what would run where, whether it fits, and how fast it will be.",
    "bench": "Measure how fast models read prompts and generate.",
    "perplexity": "Measure how well a model foretells a text.",
    "worker": "Lend this machine's devices and memory to ggrun on other machines.",
    "join": "Remember the key of a worker on another machine.",
    "doctor": "Look this machine over: what ggrun finds, what is broken, what to install.",
}
_NO_THREAD = "can't start new thread"  # as Python says it
_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


class LazyGroup(click.Group):
    """A group whose commands live in modules of their own names, each with a function of that name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, without importing anything."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"ggrun.cli.{cmd_name}"), cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list for --help, without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings=_CONTEXT)
@click.version_option(__version__, prog_name="ggrun")
def ggrun() -> None:
    """Run GGUF models: one line of pip is all the set-up.

    \b
    ggrun run -p "Once upon a time"              the bundled demo model
    ggrun run -m model.gguf -p "The sea" -n 64   your own
    ggrun plan model.gguf                        what would go where, before anything is loaded

    Every option has a twin in the environment, named by its first long name: --ctx-size is GGRUN_CTX_SIZE.
    """


def status_of(arguments: list[str]) -> int:
    """Run the command line: one line on stderr, and an exit status, for whatever goes wrong."""
    with usable_streams():
        return _run(arguments or ["--help"])


def _run(arguments: list[str]) -> int:
    try:
        status = _invoked(arguments)
        sys.stdout.flush()  # what is not written by then is no success
        return status
    except BrokenPipeError:
        # Whoever read our output has gone: nothing to say, and nobody to say it to.
        return 0
    except (KeyboardInterrupt, click.Abort):
        return 130
    except Exception as error:
        if os.environ.get("GGRUN_DEBUG") and not isinstance(error, (click.ClickException, GgrunError)):
            raise
        message, status = _explained(error)
        complain(message)
        return status


def _invoked(arguments: list[str]) -> int:
    try:
        # Not ggrun.main(): that has ways of its own with a reader that leaves.
        with interruptible(), ggrun.make_context("ggrun", arguments) as context:
            result: Any = ggrun.invoke(context)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as stop:
        return stop.exit_code


def _explained(error: Exception) -> tuple[str, int]:
    """The line for an error, and the exit status."""
    if isinstance(error, click.ClickException):
        return error.format_message(), error.exit_code
    if isinstance(error, GgrunError):
        return str(error), error.exit_status
    if isinstance(error, MemoryError):
        return "out of memory: give a smaller context with -c", 1
    if isinstance(error, OSError):
        why = error.strerror or ", ".join(map(str, error.args))
        return f"{error.filename}: {why}" if error.filename else why, 1
    if isinstance(error, RuntimeError) and str(error) == _NO_THREAD:
        return "the system allows no more threads: ulimit -u says how many; -t and --devices take fewer", 1
    name = type(error).__name__
    return f"internal error, please report it: {name}: {error} (GGRUN_DEBUG=1 shows more)", 1
