"""The command line. Commands are imported when they are called, so that help is instant."""

import os
import sys
from importlib import import_module
from typing import Any

import click

from ggrun import __version__
from ggrun.errors import GgrunError

COMMANDS = {"run": "Generate text after a prompt."}
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

    Every option has a twin in the environment: --ctx-size is GGRUN_CTX_SIZE.
    """


def main() -> None:
    """Run the command line: one line on stderr and an exit status for whatever goes wrong."""
    sys.exit(_run())


def _run() -> int:
    try:
        _prefer_utf8()
        # Not ggrun.main(): that has ways of its own with a reader that leaves.
        with ggrun.make_context("ggrun", sys.argv[1:]) as context:
            result: Any = ggrun.invoke(context)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        return _complain(error.format_message(), error.exit_code)
    except GgrunError as error:
        return _complain(str(error), error.exit_status)
    except BrokenPipeError:
        # Whoever read our output has gone: nothing to say, and nobody to say it to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (KeyboardInterrupt, click.Abort):
        return 130
    except MemoryError:
        return _complain("out of memory: give a smaller context with -c", 1)
    except OSError as error:
        return _complain(f"{error.filename or 'output'}: {error.strerror or error}", 1)
    except Exception as error:
        if os.environ.get("GGRUN_DEBUG"):
            raise
        return _complain(
            f"internal error, please report it: {type(error).__name__}: {error} (GGRUN_DEBUG=1 shows more)", 1
        )


def _prefer_utf8() -> None:
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def _complain(message: str, status: int) -> int:
    line = " ".join(message.split())
    print(f"ggrun: {line}", file=sys.stderr)
    return status
